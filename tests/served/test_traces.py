"""One trace of a request and of a job, over all processes, as a collector gets them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from scripts.local_service import LocalService
from tests.served.collector import Collector, Span, collecting
from tests.served.conftest import SETTINGS

SEQUENCES = ["MKTAYIAKQRQISFVKSHFSRQ", "GIVEQCCTSICSLYQLENYCN"]
RUNNER = "runner_esm2_mini"


@dataclass(frozen=True)
class Traced:
    http: httpx.Client
    collector: Collector

    def post(self, path: str, **body: object) -> tuple[httpx.Response, str]:
        """The reply, and the id of the trace that the client began."""
        trace_id = secrets.token_hex(16)
        headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
        return self.http.post(path, json=body, headers=headers), trace_id

    def spans(self, trace_id: str, is_whole: Callable[[set[str]], bool]) -> list[Span]:
        """The trace's spans, when they have all come: an exporter sends every few seconds."""
        deadline = time.monotonic() + 60
        while not is_whole({span.name for span in self.collector.of(trace_id)}):
            assert time.monotonic() < deadline, self.collector.tree(trace_id)
            time.sleep(0.05)
        return self.collector.of(trace_id)


@pytest.fixture(scope="module", params=["grpc", "http/protobuf"])
def traced(
    request: pytest.FixtureRequest, stored_models: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Traced]:
    with collecting(request.param) as collector:
        environment = SETTINGS | {
            "MODELS": "esm2_mini",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": collector.protocol,
            "OTEL_SERVICE_NAME": "lab",
            "OTEL_BSP_SCHEDULE_DELAY": "200",  # milliseconds; the SDK's own setting
        }
        data_dir: Path = tmp_path_factory.mktemp("traced")
        with (
            LocalService(data_dir, environment) as service,
            httpx.Client(base_url=service.url, timeout=60) as http,
        ):
            yield Traced(http, collector)


def parents(spans: list[Span]) -> dict[str, set[str]]:
    """Names of the spans above, by name."""
    names = {span.id: span.name for span in spans}
    found: dict[str, set[str]] = {}
    for span in spans:
        found.setdefault(span.name, set()).add(names.get(span.parent, "client"))
    return found


def test_a_request_is_one_trace_from_the_client_to_the_device(traced: Traced) -> None:
    reply, trace_id = traced.post("/embeddings/compute/esm2_mini", sequences=SEQUENCES)
    assert reply.status_code == 200
    server = "POST /embeddings/compute/{model}"
    spans = traced.spans(trace_id, lambda names: {server, f"{RUNNER}.embed", "batcher.batch"} <= names)
    assert parents(spans) == {
        server: {"client"},
        "cache.lookup": {server},
        f"{RUNNER} call": {server},
        f"{RUNNER}.embed": {f"{RUNNER} call"},
        "batcher.queue": {f"{RUNNER}.embed"},
        "batcher.batch": {f"{RUNNER}.embed"},
        "cache.store": {server},
        "outputs.finish": {server},
    }
    by_name = {span.name: span for span in spans}
    assert by_name[server].instance == "lab gateway"
    assert by_name["batcher.batch"].instance == f"lab {RUNNER}"
    assert by_name["batcher.batch"].attributes["pes.batch.sequences"] == 2
    about = by_name[server].attributes
    assert (about["http.route"], about["http.response.status_code"]) == ("/embeddings/compute/{model}", 200)
    assert (about["pes.cache.misses"], about["pes.tokens"]) == (2, sum(map(len, SEQUENCES)) + 4)
    assert not any(sequence in str(span.attributes) for span in spans for sequence in SEQUENCES)


def test_a_hit_does_not_reach_the_runner(traced: Traced) -> None:
    traced.post("/embeddings/compute/esm2_mini", sequences=SEQUENCES[:1], dtype="float32")
    _, trace_id = traced.post("/embeddings/compute/esm2_mini", sequences=SEQUENCES[:1], dtype="float32")
    spans = traced.spans(trace_id, lambda names: "POST /embeddings/compute/{model}" in names)
    assert {span.name for span in spans} == {
        "POST /embeddings/compute/{model}",
        "cache.lookup",
        "outputs.finish",
    }


def test_a_jobs_work_belongs_to_the_trace_of_its_submission(traced: Traced) -> None:
    reply, trace_id = traced.post("/embeddings/jobs/submit", sequences=[s[::-1] for s in SEQUENCES])
    assert reply.status_code == 202
    whole = {"POST /embeddings/jobs/submit", "job.run", "batcher.batch", f"{RUNNER}.embed", "job.window"}
    spans = traced.spans(trace_id, lambda names: whole <= names)
    above = parents(spans)
    assert above["job.run"] == {"POST /embeddings/jobs/submit"}
    assert above["job.window"] == {"job.run"}
    assert above["batcher.batch"] == {f"{RUNNER}.embed"}
    assert above["cache.lookup"] == {"job.window"}


def test_an_error_is_marked(traced: Traced) -> None:
    reply, trace_id = traced.post("/embeddings/compute/esm2_mini", sequences=["MKTAYJAKQR"])
    (span,) = traced.spans(trace_id, lambda names: len(names) == 1)
    assert reply.status_code == span.attributes["http.response.status_code"] == 422
