"""Rules and dashboards on a real Prometheus, which scrapes the running service.

First all is well, then a runner is stuck for a while, at last the service is gone.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import torch

from scripts import import_model
from scripts.local_service import LocalService, free_port
from tests.chaos.running import Running
from tests.deploy.names import (
    DEPLOY,
    RULES,
    Query,
    dashboard_queries,
    filled,
    rule_queries,
    rules,
    selectors_of,
    without_thresholds,
)
from tests.models.text.checkpoints import MINILM, write

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus on this machine")

MODEL = "esm2_mini"
KEY = "a-key-of-these-tests"
SETTINGS = {
    "MODELS": MODEL,
    "PRECISION": "fp32",
    "GATEWAY_WORKERS": "2",
    "API_KEYS": f"tester:{KEY}",
    "METRICS_OPEN": "false",  # so that the way there with a key is tested too
    "MAX_JOBS_PER_KEY": "1",  # so that a second one is refused with 429
}
PATIENCE_S = 60.0  # for what takes a few seconds on a quiet machine
NUM_ROUNDS = 4  # of requests, with a scrape between them: a rate needs two samples, counters that begin late more

# Why a query has no data here, by what it asks for. Everything else must have some. No stand-in for
# a GPU: these are what its driver answers, and a stand-in would only repeat what the test told it
_OF_GPUS = ("gpu_memory_used_bytes", "gpu_memory_total_bytes")
WITHOUT_DATA = {} if torch.cuda.is_available() else dict.fromkeys(_OF_GPUS, "no GPU on this machine")

# Alerts whose condition may hold for a moment all the same
MAY_HOLD = {"EventLoopLag"}  # the machine has other things to do

# Those that fire because a runner hangs
OF_A_STUCK_RUNNER = {"RunnerDown", "ModelUnavailable", "HighErrorRate"}


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus, which scrapes a service every second."""

    http: httpx.Client

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """The samples that an expression has now."""
        reply = self.http.get("/api/v1/query", params={"query": expression})
        answer = reply.json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        data = answer["data"]
        assert data["resultType"] == "vector", expression
        found: list[dict[str, Any]] = data["result"]
        return found

    def shows(self, expression: str) -> bool:
        """Whether there is a number; a quantile of nothing is none."""
        return any(sample["value"][1] != "NaN" for sample in self.ask(expression))

    def firing(self, within: str = "") -> set[str]:
        """Names of the alerts that fire now, or did `within` a time, as `10m`."""
        series = 'ALERTS{alertstate="firing"}'
        found = self.ask(f"last_over_time({series}[{within}])" if within else series)
        return {sample["metric"]["alertname"] for sample in found}

    def num_scrapes(self) -> float:
        found = self.ask('count_over_time(up{job="protein_embedding_service"}[10m])')
        return float(found[0]["value"][1]) if found else 0.0

    def wait_for_scrapes(self, count: int) -> None:
        """Of requests that are over now."""
        target = self.num_scrapes() + count
        wait_until(lambda: self.num_scrapes() >= target, f"{count} scrapes")


def wait_until(holds: Callable[[], bool], claim: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {claim}"
        time.sleep(0.05)


def configuration(address: str, key: Path) -> str:
    """That of deploy/, asking this service, more often."""
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    for old, new in (
        ("15s", "1s"),
        ("service:3000", address),
        ("/run/secrets/metrics_key", str(key)),
    ):
        assert old in text
        text = text.replace(old, new)
    return text


def impatient(rules: str) -> str:
    """Alerts as they are, which fire after seconds."""
    text, count = re.subn(r"for: \d+m\b", "for: 2s", rules)
    assert count == rules.count("alert:")
    return text


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """With a model of proteins and text models of each kind."""
    import_model.main([MODEL, "--if-missing"])
    folder = tmp_path_factory.mktemp("service")
    sources = {"embedder": MINILM, **{name: write(name, folder / name) for name in ("cross", "bert")}}
    texts = ",".join(f"{name}={source}" for name, source in sources.items())
    with LocalService(folder / "data", {**SETTINGS, "TEXT_MODELS": texts}) as service:
        yield service


@pytest.fixture(scope="module")
def http(service: LocalService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=120, headers={"Authorization": f"Bearer {KEY}"}) as http:
        yield http


@pytest.fixture(scope="module")
def started(service: LocalService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus, with the rules and nothing to see yet."""
    folder, address = tmp_path_factory.mktemp("prometheus"), f"127.0.0.1:{free_port()}"
    for name in RULES:
        (folder / name).write_text(impatient((DEPLOY / "prometheus" / name).read_text()))
    key = folder / "metrics_key"
    key.write_text(KEY)
    config = folder / "prometheus.yml"
    config.write_text(configuration(urlsplit(service.url).netloc, key))
    arguments = [
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *arguments], cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=30) as client:
            wait_until(lambda: is_ready(client), "Prometheus is ready")
            yield Prometheus(client)
    finally:
        process.terminate()
        process.wait(timeout=30)


def is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def prometheus(http: httpx.Client, started: Prometheus) -> Prometheus:
    """After requests of all kinds, several times each; all went well."""
    for number in range(NUM_ROUNDS):
        started.wait_for_scrapes(2)
        use(http, number)
    started.wait_for_scrapes(3)
    return started


@pytest.fixture(scope="module")
def troubled(service: LocalService, http: httpx.Client, prometheus: Prometheus) -> Prometheus:
    """After a time in which a runner was stuck, until the alerts said so; it is back."""
    (runner,) = Running(service, http).workers(f"runner_{MODEL}")
    runner.suspend()
    try:
        job = submit(http, ["MKTAYIAKQRQISFVKSHFSRQ"])
        assert job.status_code == 202, job.text
        assert submit(http, ["GIVEQCCTSICSLYQLENYCN"]).status_code == 429

        def has_fired() -> bool:
            body = {"sequences": ["MQIFVKTLTGKTITLEVEPSDTIENVKAKIQ"]}
            reply = http.post(f"/embeddings/compute/{MODEL}", json=body, headers={"X-Request-Timeout": "1"})
            assert reply.status_code in (503, 504), reply.text
            return prometheus.firing() >= OF_A_STUCK_RUNNER

        wait_until(has_fired, f"{OF_A_STUCK_RUNNER} fire")
    finally:
        runner.resume()
    wait_until(lambda: not prometheus.firing() & {"RunnerDown", "ModelUnavailable"}, "the runner is back")
    wait_for_job(http, job)
    return prometheus


def use(http: httpx.Client, number: int) -> None:
    """New sequences, then the same from the cache; a long one in windows; a job; texts; once without a key."""
    sequences = [letters * 20 for letters in ("MKTAYI", "GIVEQC", "MQIFVK")]
    new = [sequence + "ACDEFGHIKL"[number] for sequence in sequences]
    body = {"sequences": new, "dtype": "float32"}
    for _ in range(2):
        assert http.post(f"/embeddings/compute/{MODEL}", json=body).status_code == 200
    long = {"sequences": ["".join(new) * 2], "on_too_long": "window", "max_length": 256}
    assert http.post(f"/embeddings/compute/{MODEL}", json=long).status_code == 200
    reply = submit(http, [f"{sequence}W" for sequence in new])
    assert reply.status_code == 202, reply.text
    wait_for_job(http, reply)
    texts = [f"{number} cats sat on the mat", f"the weather is nice, {number} times"]
    for path, asked in (
        ("/embed", {"input": texts, "model": "embedder"}),
        ("/rerank", {"query": "cats", "documents": texts}),
        ("/predict", {"texts": texts}),
    ):
        reply = http.post(path, json=asked)
        assert reply.status_code == 200, reply.text
    assert http.get(f"/embeddings/compute/{MODEL}", headers={"Authorization": ""}).status_code == 401


def submit(http: httpx.Client, sequences: Sequence[str]) -> httpx.Response:
    fasta = "".join(f">{index}\n{sequence}\n" for index, sequence in enumerate(sequences))
    return http.post(
        f"/embeddings/jobs/submit?model={MODEL}", content=fasta, headers={"content-type": "text/x-fasta"}
    )


def wait_for_job(http: httpx.Client, submitted: httpx.Response) -> None:
    link = submitted.json()["status_link"]
    wait_until(lambda: http.get(link).json()["status"] == "done", "the job is done")


def may_be_without_data(expression: str) -> bool:
    return any(part in expression for part in WITHOUT_DATA)


def test_prometheus_has_taken_the_rules(prometheus: Prometheus) -> None:
    groups = prometheus.http.get("/api/v1/rules").json()["data"]["groups"]
    loaded = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert loaded.keys() == rules("record").keys() | rules("alert").keys()
    for rule in loaded.values():
        assert rule["health"] == "ok", rule


@pytest.mark.parametrize("name", rules("alert"))
def test_an_alert_sees_what_it_watches_and_is_silent(name: str, prometheus: Prometheus) -> None:
    """Silent while all is well. Without its threshold it has a value, so that it could fire."""
    expression = rules("alert")[name]["expr"]
    assert prometheus.ask(expression) == [] or name in MAY_HOLD
    for asked in (without_thresholds(expression), *selectors_of(expression)):
        assert prometheus.shows(asked) or may_be_without_data(asked), asked


def test_the_cache_is_seen_to_work(prometheus: Prometheus) -> None:
    """Prometheus has the numbers of what was asked, and no others."""
    hits = prometheus.ask(filled(f'sum(embedding_cache_hits_total{{job="$job", model="{MODEL}"}})'))
    asked = prometheus.ask(
        filled('sum(http_requests_total{job="$job", route="/embeddings/compute/{model}", status="200"})')
    )
    assert float(asked[0]["value"][1]) == 3 * NUM_ROUNDS
    assert float(hits[0]["value"][1]) == 3 * NUM_ROUNDS


def test_alerts_fire_when_a_runner_is_stuck_and_end_when_it_is_back(troubled: Prometheus) -> None:
    assert troubled.firing(within="10m") >= OF_A_STUCK_RUNNER
    assert "HighErrorRate" in troubled.firing(), "five minutes are not over"
    assert not troubled.firing() & {"RunnerDown", "ModelUnavailable"}


@pytest.mark.parametrize("query", dashboard_queries(), ids=lambda query: query.where)
def test_a_panel_shows_something(query: Query, troubled: Prometheus) -> None:
    for asked in (query.expression, *selectors_of(query.expression)):
        assert troubled.shows(asked) or may_be_without_data(asked), asked


@pytest.mark.parametrize("name", rules("record"))
def test_a_recording_rule_records_something(name: str, troubled: Prometheus) -> None:
    for asked in (name, *selectors_of(rules("record")[name]["expr"])):
        assert troubled.shows(asked) or may_be_without_data(asked), asked


@pytest.mark.parametrize("part", WITHOUT_DATA)
def test_what_has_no_data_is_asked_for(part: str) -> None:
    """A line of the list that nothing needs any more goes."""
    assert any(part in query.expression for query in (*rule_queries(), *dashboard_queries()))


def test_an_alert_fires_when_the_service_is_gone(service: LocalService, prometheus: Prometheus) -> None:
    """Last, as it ends the service."""
    service.stop()
    wait_until(lambda: "ServiceDown" in prometheus.firing(), "ServiceDown fires")
