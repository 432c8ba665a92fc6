"""Requests that nobody thought of, made from the OpenAPI document: they are answered as it says.

Every run makes some 2,000. By hand, 10,000 and more:

    FUZZ_CASES=10000 .venv/bin/python -m pytest tests/served/test_fuzz.py

What the tool makes of the document is in fuzz.toml, what no document can say in fuzzing.py.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from scripts import import_model
from scripts.local_service import ROOT, LocalService
from tests.models.text.checkpoints import write

NUM_CASES = int(os.environ.get("FUZZ_CASES", "300"))
SEED = 17
KEYS = {"ops": "an-operator-that-fuzzes", "lab": "somebody-else-altogether"}
OPEN = {"/health/live", "/health/ready", "/ready", "/metrics"}
NATIVE = ["/encode", "/encode_per_residue"]
TEXT_MODELS = {"embedder": "prompted", "reranker": "cross", "classifier": "bert"}
SETTINGS = {
    "MODELS": "esm2_mini",
    "PRECISION": "fp32",
    "GATEWAY_WORKERS": "1",
    "API_KEYS": f"lab:{KEYS['lab']}",
    "ADMIN_API_KEYS": f"ops:{KEYS['ops']}",
    # The document knows no settings: these are as wide as it is
    "MIN_SEQUENCE_LENGTH": "1",
    "MAX_SEQUENCE_LENGTH": "1000000",
    "MAX_JOBS_PER_KEY": "100000",
    "DOWNLOAD_TTL_MINUTES": "1000",
    # So that replies say how much is left
    "REQUESTS_PER_MINUTE": "1000000000",
    "TOKENS_PER_MINUTE": "1000000000",
}


@dataclass(frozen=True)
class Fuzzed:
    """The running service, a client of its operator, and the document."""

    service: LocalService
    http: httpx.Client
    document: dict[str, Any]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    folder = tmp_path_factory.mktemp("fuzzed")
    import_model.main(["esm2_mini"])
    sources = {name: write(maker, folder / maker) for name, maker in TEXT_MODELS.items()}
    texts = ",".join(f"{name}={source}" for name, source in sources.items())
    with (
        LocalService(folder / "data", {**SETTINGS, "TEXT_MODELS": texts}) as service,
        httpx.Client(base_url=service.url, timeout=60, headers=_bearer("ops")) as http,
    ):
        yield Fuzzed(service, http, http.get("/openapi.json").json())


def test_whatever_fits_the_document_or_does_not_is_answered_as_it_says(fuzzed: Fuzzed, tmp_path: Path) -> None:
    identities = [
        {"name": name, "fixedHeaders": [{"name": "Authorization", "value": f"Bearer {key}"}]}
        for name, key in KEYS.items()
    ]
    auth = tmp_path / "auth.json"
    auth.write_text(json.dumps({"auth": identities}))
    operations = [one for path in fuzzed.document["paths"].values() for one in path]
    each = math.ceil(NUM_CASES / len(operations))  # beside those that cover each rule of the document, some 1,700
    arguments = ["--config-file", str(ROOT / "tests/served/fuzz.toml")]
    report = _run_schemathesis(fuzzed, tmp_path, arguments, ["-n", str(each)], {"FUZZ_AUTH": str(auth)})
    assert report["operations"]["tested"] == len(operations)
    assert report["test_cases"]["generated"] >= NUM_CASES


def test_without_a_key_whatever_is_asked_is_answered_with_401_unless_it_is_open(
    fuzzed: Fuzzed, tmp_path: Path
) -> None:
    checks = "no_reply_without_a_key,status_code_conformance,content_type_conformance,response_schema_conformance"
    options = ["--checks", f"{checks},response_headers_conformance", "--request-timeout", "60"]
    options += ["--phases", "examples,fuzzing", "-n", "3"]
    report = _run_schemathesis(fuzzed, tmp_path, [], options, {"SCHEMATHESIS_HOOKS": "tests.served.fuzzing"})
    assert report["test_cases"]["generated"] >= len(fuzzed.document["paths"])


def test_the_open_ones_are_the_probes_and_the_metrics(fuzzed: Fuzzed) -> None:
    operations = {path: one for path, ones in fuzzed.document["paths"].items() for one in ones.values()}
    is_open = {path for path, operation in operations.items() if {} in operation["security"]}
    assert is_open == OPEN
    for path in OPEN:
        assert httpx.get(fuzzed.service.url + path, timeout=60).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {KEYS['ops'][:-1]}"},
        {"authorization": f"Basic {KEYS['ops']}"},
        {"authorization": f"Bearer {KEYS['ops']} {KEYS['ops']}"},
        {"authorization": b"Bearer \xff\xfe"},
        {"x-api-key": ""},
        {"x-api-key": KEYS["ops"].upper()},
        {"authorization": "Bearer wrong", "x-api-key": KEYS["ops"]},
    ],
)
def test_a_key_that_is_none_opens_no_route(fuzzed: Fuzzed, headers: dict[str, Any]) -> None:
    paths = fuzzed.document["paths"] | {path: {"post": {}} for path in (*NATIVE, "/v1/nothing")}
    with httpx.Client(base_url=fuzzed.service.url, headers=headers, timeout=60) as stranger:
        for path in paths.keys() - OPEN:
            for method in paths[path]:
                reply = stranger.request(method, path)
                assert reply.status_code == 401, f"{method} {path}"
                assert reply.headers["www-authenticate"] == "Bearer"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([10**40, -1, 1e308]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
SEQUENCES = st.lists(st.sampled_from(["MKTAYIAKQR", "mkt *", "a b c", ""]) | st.text(), max_size=4)
ARGUMENTS = st.fixed_dictionaries(
    {"sequences": SEQUENCES | JSON},
    optional={
        "model": st.sampled_from(["esm2_mini", "embedder", "reranker"]) | JSON,
        "max_length": st.integers() | JSON,
        "on_too_long": st.sampled_from(["error", "truncate", "window"]) | JSON,
        "dtype": st.sampled_from(["float16", "float32"]) | JSON,
        "further": JSON,
    },
)
BODIES = (ARGUMENTS | JSON).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=200)
MEDIA_TYPES = st.just("application/json") | st.sampled_from(
    [
        *("", "text/plain", "image/png", "application/octet-stream", "application/json; charset=utf-16"),
        *("multipart/form-data", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"),
        *("application/vnd.bentoml+pickle", "application/vnd.bentoml+arrow", "\xff"),
    ]
)


@settings(
    max_examples=max(100, NUM_CASES // 5), database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
@seed(SEED)
@given(path=st.sampled_from(NATIVE), body=BODIES, media_type=MEDIA_TYPES)
def test_whatever_comes_to_a_native_method_is_its_clients_fault(
    fuzzed: Fuzzed, path: str, body: bytes, media_type: str
) -> None:
    reply = fuzzed.http.post(path, content=body, headers={b"content-type": media_type.encode("latin-1")})
    assert reply.status_code in (200, 400, 404, 415, 422), reply.text
    if reply.status_code == 400:  # BentoML's own words
        assert reply.json()["error"]
    elif reply.status_code != 200:
        (told,) = reply.json()
        assert told["error"]


def test_after_all_that_the_service_is_well(fuzzed: Fuzzed) -> None:
    assert fuzzed.http.get("/embeddings/health").json()["status"] == "healthy"
    deadline = time.monotonic() + 60
    while any(
        job["status"] in ("queued", "running") for job in fuzzed.http.get("/embeddings/jobs").json()["jobs"]
    ):
        assert time.monotonic() < deadline, "a job does not end"
        time.sleep(0.1)
    reply = fuzzed.http.post("/embeddings/compute/esm2_mini", json={"sequences": ["MKTAYIAKQR"]})
    assert reply.status_code == 200


def _bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}"}


def _run_schemathesis(
    fuzzed: Fuzzed, folder: Path, arguments: list[str], options: list[str], environment: dict[str, str]
) -> dict[str, Any]:
    """What it reports; its own words where it found something."""
    computed = fuzzed.http.post("/embeddings/compute/esm2_mini", json={"sequences": ["MKTAYIAKQR"]}).json()
    job = fuzzed.http.post("/embeddings/jobs/submit", json={"sequences": ["MKTAYIAKQR"]}).json()
    known = {
        "FUZZ_KEYS": ",".join([*KEYS.values(), *(f"Bearer {key}" for key in KEYS.values())]),
        "FUZZ_REQUEST_ID": computed["download_link"].rpartition("/")[2],
        "FUZZ_JOB_ID": job["job_id"],
    }
    path = folder / "report.json"
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("schemathesis")), *arguments),
            *("run", f"{fuzzed.service.url}/openapi.json", *options, "--no-color"),
            *("--seed", str(SEED), "--generation-database", "none"),
            *("--report", "json", "--report-json-path", str(path)),
        ],
        cwd=folder,  # it leaves a cache where it is started
        env={**os.environ, "PYTHONPATH": str(ROOT), **known, **environment},
        capture_output=True,
        text=True,
        timeout=300 + NUM_CASES,
    )
    (folder / "schemathesis.txt").write_text(done.stdout)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nlog of the service:\n{fuzzed.service.tail()}"
    report: dict[str, Any] = json.loads(path.read_text())
    print(f"{report['test_cases']} in {report['running_time']:.0f} s")
    return report
