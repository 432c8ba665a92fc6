"""The running service with keys: who gets where, whose things are whose, how much one may ask, what is told."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bentoml
import httpx
import numpy as np
import openai
import psutil
import pytest
from bentoml.exceptions import BentoMLException

from scripts import embed
from scripts.local_service import LocalService

ALICE, BOB, CAROL, ROOT = (f"{name}-key-0123456789" for name in ("alice", "bob", "carol", "root"))
SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"
OTHER = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEG"
COMPUTE = "/embeddings/compute/esm2_mini"
ORIGIN = "https://lab.example.org"
# What docs/api.md says is open by default
OPEN = {
    *("/livez", "/readyz", "/healthz", "/health/live", "/health/ready", "/ready"),
    *("/metrics", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json", "/docs.json", "/schema.json"),
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@dataclass(frozen=True)
class Guarded:
    """A running service, its file of keys, and clients of it."""

    service: LocalService
    keys: Path

    @property
    def url(self) -> str:
        return self.service.url

    @property
    def log(self) -> str:
        return self.service.log.read_text()

    def ask(self, method: str, path: str, key: str | None = None, **options: Any) -> httpx.Response:
        """On a connection of its own, so that any worker may answer."""
        headers = options.pop("headers", {}) | ({"Authorization": f"Bearer {key}"} if key else {})
        return httpx.request(method, f"{self.url}{path}", headers=headers, timeout=60, **options)

    def compute(self, key: str | None, *sequences: str, **options: Any) -> httpx.Response:
        return self.ask("POST", COMPUTE, key, json={"sequences": list(sequences)}, **options)


def write_keys(path: Path, **keys: str) -> None:
    """As an editor does it: a new file takes the old one's place."""
    new = path.with_suffix(".new")
    new.write_text("".join(f"{name}:{key}\n" for name, key in keys.items()))
    new.replace(path)


def guarded_by(folder: Path, **settings: str) -> Iterator[Guarded]:
    keys, operators = folder / "keys", folder / "operators"
    write_keys(keys, alice=ALICE, bob=BOB, carol=CAROL)
    write_keys(operators, root=ROOT)
    environment = {
        **{"MODELS": "esm2_mini", "PRECISION": "fp32", "GATEWAY_WORKERS": "2", "LOG_LEVEL": "INFO"},
        **{"API_KEYS_FILE": str(keys), "ADMIN_API_KEYS_FILE": str(operators)},
        **settings,
    }
    with LocalService(folder / "data", environment) as service:
        yield Guarded(service, keys)


@pytest.fixture(scope="module")
def guarded(stored_models: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    yield from guarded_by(tmp_path_factory.mktemp("guarded"), LOG_FORMAT="json")


@pytest.fixture(scope="module")
def limited(stored_models: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """With limits, a web page that may ask, and a log as text."""
    limits = {"REQUESTS_PER_MINUTE": "20", "TOKENS_PER_MINUTE": "100"}
    yield from guarded_by(tmp_path_factory.mktemp("limited"), LOG_FORMAT="text", CORS_ORIGINS=ORIGIN, **limits)


def eventually(holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def paths_of(guarded: Guarded) -> set[str]:
    """Every path that the running service tells of, by each of its descriptions."""
    fetched = {
        path: guarded.ask("GET", path, ALICE).json() for path in ("/openapi.json", "/docs.json", "/schema.json")
    }
    found = {*fetched["/openapi.json"]["paths"], *fetched["/docs.json"]["paths"]}
    found |= {route["route"] for route in fetched["/schema.json"]["routes"]}
    found |= set(guarded.ask("GET", "/", ALICE).json()["endpoints"])
    assert {COMPUTE.replace("esm2_mini", "{model}"), "/encode", "/v1/embeddings", "/livez"} <= found
    return {re.sub(r"\{\w+\}", "x", path) for path in found}


def test_without_a_key_only_what_is_open_is_reached_by_any_method(guarded: Guarded) -> None:
    further = {"/nowhere", "/assets/x", "/static_content/x", "/encode/submit", "/openapi", "/static-offline-docs"}
    paths = paths_of(guarded) | OPEN | further
    with httpx.Client(base_url=guarded.url, timeout=60) as client:
        for path in sorted(paths):
            for method in METHODS:
                reply = client.request(method, path)
                if path in OPEN:
                    assert reply.status_code != 401, (method, path)
                else:
                    assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer"), (
                        method,
                        path,
                    )
                assert reply.headers["x-content-type-options"] == "nosniff", (method, path)


def test_what_is_open_works_without_a_key(guarded: Guarded) -> None:
    for path in sorted(OPEN):
        assert guarded.ask("GET", path).status_code == 200, path
    page = guarded.ask("GET", "/docs").text
    assets = re.findall(r'(?:src|href)="(/[^"]+)"', page)
    assert assets
    for asset in assets:
        assert guarded.ask("GET", asset).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static-offline-docs/../embeddings/config",
        "/static-offline-docs/..%2fembeddings%2fconfig",
        "/static-offline-docs/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/static-offline-docs//etc/passwd",
        "/metrics/../embeddings/config",
        "//embeddings/config",
        "/embeddings//config",
        "/embeddings/config/",
        "/embeddings/config%00",
        "/embeddings/config%0a",
        "/embeddings/config;x=/metrics",
        "/embeddings/config?/metrics",
        "/EMBEDDINGS/CONFIG",
        "/%65mbeddings/%63onfig",
        "/embeddings/config#/metrics",
        "http://127.0.0.1/embeddings/config",
        "http://127.0.0.1/metrics/../embeddings/config",
        "/livez%2f..%2fembeddings%2fconfig",
    ],
)
def test_no_spelling_of_a_path_gets_around_the_key(guarded: Guarded, path: str) -> None:
    """Sent as it is: clients of HTTP tidy paths."""
    connection = http.client.HTTPConnection(guarded.url.removeprefix("http://"), timeout=30)
    connection.request("GET", path)
    reply = connection.getresponse()
    body = reply.read().decode()
    connection.close()
    assert reply.status in (400, 401, 404)
    assert "sequence_limits" not in body
    assert "root:" not in body


@pytest.mark.parametrize("key", ["", f"Authorization: Bearer {ALICE}\r\n"])
@pytest.mark.parametrize("path", ["/encode", "/metrics", "/"])
def test_there_are_no_websockets(guarded: Guarded, path: str, key: str) -> None:
    host, _, port = guarded.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        assert b" 403 " in connection.recv(4096).partition(b"\r\n")[0]


@pytest.mark.parametrize("header", [{"Authorization": f"Bearer {ALICE}"}, {"X-API-Key": ALICE}])
def test_a_key_is_taken_in_either_header(guarded: Guarded, header: dict[str, str]) -> None:
    assert guarded.compute(None, SEQUENCE, headers=header).status_code == 200
    assert guarded.ask("POST", "/encode", headers=header, json={"sequences": [SEQUENCE]}).status_code == 200


@pytest.mark.parametrize("path", [COMPUTE, "/encode", "/v1/embeddings", "/embeddings/jobs/submit"])
def test_a_wrong_key_is_refused(guarded: Guarded, path: str) -> None:
    for key in ("wrong", ALICE[:-1], ALICE.upper()):
        assert guarded.ask("POST", path, key, json={"sequences": [SEQUENCE]}).status_code == 401


def test_a_body_without_a_key_is_not_read(guarded: Guarded) -> None:
    """The reply comes while the body is still to come."""
    host, _, port = guarded.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"POST {COMPUTE} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000000\r\n\r\n"
        connection.sendall(head.encode())
        assert b" 401 " in connection.recv(4096).partition(b"\r\n")[0]


def test_a_key_that_is_replaced_counts_without_a_restart(guarded: Guarded) -> None:
    new = "carols-other-key-0123"
    status_of = {
        key: lambda key=key: guarded.ask("GET", "/embeddings/models", key).status_code for key in (CAROL, new)
    }
    assert (status_of[CAROL](), status_of[new]()) == (200, 401)
    write_keys(guarded.keys, alice=ALICE, bob=BOB, carol=new)
    # Every worker looks for itself
    eventually(lambda: all(status_of[new]() == 200 and status_of[CAROL]() == 401 for _ in range(10)))
    guarded.keys.write_text("what is this\n")
    eventually(lambda: status_of[new]() == 200 and "the keys stay as they were" in guarded.log)
    assert [status_of[new]() for _ in range(10)] == [200] * 10
    write_keys(guarded.keys, alice=ALICE, bob=BOB, carol=CAROL)
    eventually(lambda: all(status_of[CAROL]() == 200 and status_of[new]() == 401 for _ in range(10)))


@pytest.mark.parametrize(("method", "path"), [("GET", "/embeddings/config"), ("POST", "/embeddings/cache/clear")])
def test_what_operators_may_needs_an_operators_key(guarded: Guarded, method: str, path: str) -> None:
    assert guarded.ask(method, path).status_code == 401
    refused = guarded.ask(method, path, ALICE)
    assert (refused.status_code, refused.json()["error"]) == (403, "Forbidden")
    allowed = guarded.ask(method, path, ROOT)
    assert allowed.status_code == 200
    assert not [key for key in (ALICE, BOB, CAROL, ROOT) if key in allowed.text]


def test_an_operator_can_compute_too(guarded: Guarded) -> None:
    assert guarded.compute(ROOT, SEQUENCE).status_code == 200


def test_a_download_is_found_by_its_owner_alone(guarded: Guarded) -> None:
    link = guarded.compute(ALICE, SEQUENCE).json()["download_link"]
    for other in (BOB, ROOT):
        for headers in ({}, {"Range": "bytes=0-9"}):
            reply = guarded.ask("GET", link, other, headers=headers)
            assert (reply.status_code, reply.json()["detail"]) == (404, "no such download")
    assert guarded.ask("GET", link).status_code == 401
    assert guarded.ask("GET", link, ALICE).status_code == 200


def test_a_job_is_seen_cancelled_and_fetched_by_its_owner_alone(guarded: Guarded) -> None:
    def submit(key: str) -> str:
        headers = {"Idempotency-Key": "the same of everybody"}
        reply = guarded.ask(
            "POST", "/embeddings/jobs/submit", key, json={"sequences": [SEQUENCE]}, headers=headers
        )
        assert reply.status_code == 202
        job_id: str = reply.json()["job_id"]
        return job_id

    job_id = submit(ALICE)
    assert submit(ALICE) == job_id
    assert submit(BOB) != job_id
    of_job = f"/embeddings/jobs/{job_id}"
    eventually(lambda: guarded.ask("GET", of_job, ALICE).json()["status"] == "done")
    for other in (BOB, ROOT):
        for method, path in (("GET", ""), ("GET", "/events"), ("GET", "/result"), ("DELETE", "")):
            reply = guarded.ask(method, of_job + path, other)
            assert (reply.status_code, reply.json()["detail"]) == (404, "no such job"), (method, path)
        assert job_id not in guarded.ask("GET", "/embeddings/jobs", other).text
    assert job_id in guarded.ask("GET", "/embeddings/jobs", ALICE).text
    assert "event: done" in guarded.ask("GET", f"{of_job}/events", ALICE).text
    assert guarded.ask("GET", f"{of_job}/result", ALICE).status_code == 200


def test_bentomls_own_client_works_with_a_key(guarded: Guarded) -> None:
    with bentoml.SyncHTTPClient(guarded.url, token=ALICE) as client:
        assert client.encode(sequences=[SEQUENCE, OTHER]).shape == (2, 144)
        with np.load(client.encode_per_residue(sequences=[SEQUENCE]), allow_pickle=False) as arrays:
            assert arrays["embedding_0"].shape == (len(SEQUENCE), 144)
    for token in (None, "wrong"):
        with (
            bentoml.SyncHTTPClient(guarded.url, token=token) as client,
            pytest.raises(BentoMLException) as error,
        ):
            client.encode(sequences=[SEQUENCE])
        assert error.value.error_code == 401


def test_openais_client_works_with_a_key(guarded: Guarded) -> None:
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=ALICE, max_retries=0) as client:
        assert len(client.embeddings.create(model="esm2_mini", input=SEQUENCE).data[0].embedding) == 144
        assert [model.id for model in client.models.list()] == ["esm2_mini"]
    with (
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="nobody has this key"),
    ):
        client.embeddings.create(model="esm2_mini", input=SEQUENCE)


def test_the_command_line_takes_its_key_from_the_environment(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fasta, output = tmp_path / "one.fasta", tmp_path / "one.npz"
    fasta.write_text(f">one\n{SEQUENCE}\n")
    arguments = [str(fasta), "-o", str(output), "--model", "esm2_mini", "--url", guarded.url]
    for key, status, told in (
        ("wrong", 1, "nobody has this key"),
        ("two\nlines", 2, "holds no key"),
        (ALICE, 0, ""),
    ):
        monkeypatch.setenv("API_KEY", key)
        with pytest.raises(SystemExit) as end:
            embed.main(arguments)
        out, err = capsys.readouterr()
        assert (end.value.code, told in err) == (status, True)
        assert key not in out + err or key == "wrong"
    assert output.exists()


def test_requests_of_a_caller_are_limited_over_all_workers(limited: Guarded) -> None:
    replies = [limited.ask("GET", "/embeddings/models", ALICE) for _ in range(20)]
    assert {reply.status_code for reply in replies} == {200}
    for reply in replies:
        assert reply.headers["ratelimit-policy"] == '"requests";q=20;w=60'
        assert re.fullmatch(r'"requests";r=\d+;t=\d+', reply.headers["ratelimit"])
    assert '"requests";r=19;' in replies[0].headers["ratelimit"]
    # A minute that begins just now lets one or two more in: the one before counts by what is left of it
    refused = next(
        r for _ in range(3) if (r := limited.ask("GET", "/embeddings/models", ALICE)).status_code == 429
    )
    assert refused.json()["error"] == "Rate limit exceeded"
    assert refused.json()["detail"].startswith("20 requests a minute are allowed; try again in ")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert limited.ask("POST", "/encode", ALICE, json={"sequences": [SEQUENCE]}).status_code == 429
    with (
        openai.OpenAI(base_url=f"{limited.url}/v1", api_key=ALICE, max_retries=0) as client,
        pytest.raises(openai.RateLimitError, match="20 requests a minute"),
    ):
        client.embeddings.create(model="esm2_mini", input=SEQUENCE)
    assert limited.ask("GET", "/embeddings/models", CAROL).status_code == 200, "others have their own"
    assert limited.ask("GET", "/livez", ALICE).status_code == 200


def test_tokens_of_a_caller_are_limited_and_what_the_cache_has_is_free(limited: Guarded) -> None:
    first, second = SEQUENCE + OTHER, OTHER + SEQUENCE  # of 70 tokens with those at their ends
    reply = limited.compute(BOB, first)
    assert reply.status_code == 200
    assert re.search(r'"tokens";r=30;t=\d+$', reply.headers["ratelimit"])
    assert limited.compute(BOB, first).status_code == 200
    refused = limited.compute(BOB, second)
    assert (refused.status_code, refused.json()["error"]) == (429, "Rate limit exceeded")
    assert "100 tokens a minute" in refused.json()["detail"]
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert limited.ask("POST", "/encode", BOB, json={"sequences": [second]}).status_code == 429
    assert limited.compute(BOB, first).status_code == 200


def test_a_page_that_may_ask_is_told_so_and_no_other(limited: Guarded) -> None:
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    preflight = limited.ask("OPTIONS", COMPUTE, headers={"Origin": ORIGIN, **asking})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    refused = limited.ask("OPTIONS", COMPUTE, headers={"Origin": "https://elsewhere.example", **asking})
    assert refused.status_code == 400
    for key, status in ((None, 401), (CAROL, 200)):
        own = limited.ask("GET", "/embeddings/models", key, headers={"Origin": ORIGIN})
        assert (own.status_code, own.headers["access-control-allow-origin"]) == (status, ORIGIN)
        other = limited.ask("GET", "/embeddings/models", key, headers={"Origin": "https://elsewhere.example"})
        assert "access-control-allow-origin" not in other.headers
        assert "access-control-allow-credentials" not in {*own.headers, *other.headers}


def test_where_no_page_is_named_none_may_ask(guarded: Guarded) -> None:
    for origin in (ORIGIN, "null", guarded.url):
        reply = guarded.ask("GET", "/embeddings/models", ALICE, headers={"Origin": origin})
        assert not [name for name in reply.headers if name.startswith("access-control-")]


def test_a_request_id_is_kept_and_stands_in_the_log(guarded: Guarded) -> None:
    reply = guarded.compute(ALICE, SEQUENCE, headers={"X-Request-Id": "mine-0001"})
    assert reply.headers["x-request-id"] == "mine-0001"
    eventually(lambda: "mine-0001" in guarded.log)
    lines = [json.loads(line) for line in guarded.log.splitlines()]  # every one is an object
    (line,) = (
        line for line in lines if line.get("request_id") == "mine-0001" and line["logger"] == "serving.access"
    )
    facts = {
        "level": "INFO",
        "method": "POST",
        "route": "/embeddings/compute/{model}",
        "status": 200,
        "caller": "alice",
    }
    assert line.items() >= facts.items()
    assert line["sequences"] == 1


@pytest.mark.parametrize("form", ["json", "text"])
def test_the_log_has_no_keys_no_sequences_and_no_ids(form: str, request: pytest.FixtureRequest) -> None:
    service: Guarded = request.getfixturevalue("guarded" if form == "json" else "limited")
    key, wrong, secret = CAROL, "nobodys-key-0123456789", "MSECRETSEQVENCEWITHNAMES"
    link = service.compute(key, secret).json()["download_link"]
    download_id = link.rpartition("/")[2]
    submitted = service.ask("POST", "/embeddings/jobs/submit", key, json={"sequences": [secret + "K"]}).json()
    service.ask("GET", link, key)
    service.ask("GET", link, BOB if form == "json" else ROOT)
    service.ask("GET", f"{submitted['status_link']}?key={key}", key)
    service.ask("GET", "/embeddings/models", wrong, headers={"X-API-Key": wrong})
    for path, body in (
        (COMPUTE, {"sequences": [secret + "J"]}),
        (COMPUTE, {"sequences": secret}),
        (COMPUTE, {"sequences": [secret], secret: 1}),
        ("/encode", {"sequences": secret}),
        ("/encode", {"sequences": [secret + "J"]}),
        ("/encode", {"sequences": [{"a": secret}]}),
        ("/embeddings/jobs/submit", {"sequences": secret}),
        ("/v1/embeddings", {"input": {"a": secret}}),
        ("/embed", {"inputs": [secret], secret: secret}),
    ):
        assert service.ask("POST", path, key, json=body).status_code in (400, 422, 429)
    for text in (f'{{"sequences": ["{secret}"', f'"{secret}"'):
        headers = {"Content-Type": "application/json"}
        assert service.ask("POST", "/encode", key, content=text, headers=headers).status_code in (400, 429)
    service.ask("GET", "/livez%0a", key, headers={"X-Request-Id": "the-last"})
    eventually(lambda: "the-last" in service.log)
    log = service.log
    for hidden in (ALICE, BOB, CAROL, ROOT, wrong, secret, SEQUENCE, OTHER, download_id):
        assert hidden not in log
    of_access = [line for line in log.splitlines() if "serving.access" in line]
    assert of_access
    assert not [line for line in of_access if submitted["job_id"] in line]
    assert "Traceback" not in log
    if form == "text":
        assert all(re.match(r"\d{4}-\d\d-\d\d [\d:,]+ \[", line) for line in log.splitlines())


# Those of the contract with dashboards that a service has after the requests below. What has a label appears with
# the first that is counted: nothing has failed here, no text model is served, no GPU is there
EXPECTED = {
    *("http_requests_total", "http_request_duration_seconds_bucket", "http_requests_in_progress"),
    *("inference_embed_requests_total", "inference_embed_duration_seconds_count", "inference_embed_items_total"),
    *("embedding_cache_hits_total", "embedding_cache_misses_total"),
    *("embedding_cache_read_bytes_total", "embedding_cache_written_bytes_total"),
    *("redis_up", "sequence_windows_total", "runner_up", "models_loaded_total"),
    *("authentication_failures_total", "rate_limited_requests_total"),
    *("event_loop_lag_seconds", "cpu_usage_percent"),
    *("jobs_queued", "jobs_oldest_queued_seconds", "jobs_running"),
    *("job_duration_seconds_count", "job_windows_total"),
    *("batcher_requests_total", "batcher_request_latency_seconds_sum", "batcher_batch_size_bucket"),
    *("batcher_batch_tokens_sum", "batcher_batch_wait_time_seconds_count", "batcher_inference_time_seconds_sum"),
    *("batcher_queue_size", "batcher_queue_tokens", "batcher_inflight_batches", "batcher_max_queue_tokens"),
    *("batcher_sequences_total", "batcher_tokens_total", "batcher_joined_total", "batcher_splits_total"),
    *("batcher_expired_total", "batcher_abandoned_total", "batcher_rejected_total", "batcher_failed_total"),
    *("device_up", "device_busy_seconds_total", "device_budget_tokens"),
    *("model_load_duration_seconds", "model_memory_bytes"),
}
OF_RUNNER = {
    "batcher_queue_size",
    "batcher_max_queue_tokens",
    "device_up",
    "device_budget_tokens",
    "model_memory_bytes",
}


def metrics_of(guarded: Guarded) -> dict[str, float]:
    """Sums over labels, by name; with them too."""
    found: dict[str, float] = {}
    for line in guarded.ask("GET", "/metrics").text.splitlines():
        if not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            found[series] = float(value)
            name = series.partition("{")[0]
            found[name] = found.get(name, 0.0) + (float(value) if name != series else 0.0)
    return found


def test_metrics_are_there_are_sums_of_workers_and_end_with_their_process(
    stored_models: None, tmp_path: Path
) -> None:
    """A service of its own: one that is started clears the measures of those before it, and a runner is killed."""
    for guarded in guarded_by(tmp_path, REQUESTS_PER_MINUTE="60"):
        _check_metrics(guarded)


def _check_metrics(guarded: Guarded) -> None:
    assert guarded.compute(ALICE, SEQUENCE).status_code == guarded.compute(ALICE, SEQUENCE).status_code == 200
    windows = {"sequences": [OTHER * 20], "max_length": 256, "on_too_long": "window"}
    assert guarded.ask("POST", COMPUTE, ALICE, json=windows).status_code == 200
    job = guarded.ask("POST", "/embeddings/jobs/submit", ALICE, json={"sequences": [OTHER]}).json()
    assert "event: done" in guarded.ask("GET", f"{job['status_link']}/events", ALICE).text
    for _ in range(30):
        assert guarded.ask("GET", "/nowhere/at/all").status_code == 401
    eventually(lambda: 429 in {guarded.ask("GET", "/embeddings/models", BOB).status_code for _ in range(20)})
    eventually(lambda: metrics_of(guarded).keys() >= EXPECTED)
    found = metrics_of(guarded)
    refused = 'http_requests_total{method="GET",route="other",status="401"}'
    assert found[refused] == 30, "of both workers"
    assert found['authentication_failures_total{reason="missing"}'] == 30
    assert found['embedding_cache_hits_total{model="esm2_mini"}'] == 1
    assert found['inference_embed_requests_total{model="esm2_mini",status="success"}'] == 3
    assert found["sequence_windows_total"] > 1
    assert found["redis_up"] == found["models_loaded_total"] == found['runner_up{model="esm2_mini"}'] == 1
    assert all(name not in series for series in found for name in (job["job_id"], "nowhere", ALICE))
    assert all(
        'service_name="runner_' in series for series in found if series.startswith("bentoml_") and "{" in series
    )

    assert guarded.service.process is not None
    family = psutil.Process(guarded.service.process.pid).children(recursive=True)
    (runner,) = (process for process in family if "runner_esm2_mini" in process.cmdline())
    runner.kill()
    eventually(lambda: not metrics_of(guarded).keys() & OF_RUNNER)
    assert metrics_of(guarded)["batcher_sequences_total"] >= found["batcher_sequences_total"], (
        "what was counted stays"
    )
    eventually(lambda: metrics_of(guarded).keys() >= OF_RUNNER, timeout_s=90)
