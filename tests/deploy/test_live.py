"""Rules and dashboards on a real Prometheus, which scrapes the running service."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from scripts import import_model
from scripts.local_service import LocalService, free_port
from tests.deploy.names import DEPLOY, RULES, Query, dashboard_queries, filled, metrics_of, rule_queries, rules

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus on this machine")

MODEL = "esm2_mini"
KEY = "a-key-of-these-tests"
SETTINGS = {"MODELS": MODEL, "PRECISION": "fp32", "GATEWAY_WORKERS": "2", "API_KEYS": f"tester:{KEY}"}
PATIENCE_S = 60.0  # for what takes a few seconds on a quiet machine
NUM_ROUNDS = 4  # of requests, with a scrape between them: a rate needs two samples, counters that begin late more

# Why a query has no data here, by what it asks for. Everything else must have some
WITHOUT_DATA = {
    "gpu_memory_used_bytes": "no GPU is asked for",
    "gpu_memory_total_bytes": "no GPU is asked for",
    "inference_rerank_requests_total": "no text model is served",
    "inference_rerank_duration_seconds_bucket": "no text model is served",
    "inference_rerank_items_total": "no text model is served",
    "inference_classify_requests_total": "no text model is served",
    "inference_classify_duration_seconds_bucket": "no text model is served",
    "inference_classify_items_total": "no text model is served",
    "ALERTS": "no alert fires",
    'status=~"5.."': "no request failed",
}

# Alerts whose condition may hold for a moment all the same
MAY_HOLD = {"EventLoopLag"}  # the machine has other things to do


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
        found: list[dict[str, Any]] = data["result"] if data["resultType"] != "scalar" else [data]
        return found

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


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """Metrics have to be asked for with a key, so that the way there is tested too."""
    import_model.main([MODEL, "--if-missing"])
    settings = {**SETTINGS, "METRICS_OPEN": "false"}
    with LocalService(tmp_path_factory.mktemp("service"), settings) as service:
        yield service


@pytest.fixture(scope="module")
def started(service: LocalService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus, with the rules and nothing to see yet."""
    folder, address = tmp_path_factory.mktemp("prometheus"), f"127.0.0.1:{free_port()}"
    for name in RULES:
        shutil.copy(DEPLOY / "prometheus" / name, folder)
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
        with httpx.Client(base_url=f"http://{address}", timeout=30) as http:
            wait_until(lambda: is_ready(http), "Prometheus is ready")
            yield Prometheus(http)
    finally:
        process.terminate()
        process.wait(timeout=30)


def is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def prometheus(service: LocalService, started: Prometheus) -> Prometheus:
    """After requests of all kinds that this service can have, several times each."""
    with httpx.Client(base_url=service.url, timeout=120, headers={"Authorization": f"Bearer {KEY}"}) as http:
        for number in range(NUM_ROUNDS):
            started.wait_for_scrapes(2)
            use(http, number)
        started.wait_for_scrapes(3)
    return started


def use(http: httpx.Client, number: int) -> None:
    """New sequences, then the same from the cache; a long one in windows; a job; a request without a key."""
    sequences = [letters * 20 for letters in ("MKTAYI", "GIVEQC", "MQIFVK")]
    new = [sequence + "ACDEFGHIKL"[number] for sequence in sequences]
    body = {"sequences": new, "dtype": "float32"}
    for _ in range(2):
        assert http.post(f"/embeddings/compute/{MODEL}", json=body).status_code == 200
    long = {"sequences": ["".join(new) * 2], "on_too_long": "window", "max_length": 256}
    assert http.post(f"/embeddings/compute/{MODEL}", json=long).status_code == 200
    fasta = "".join(f">{index}\n{sequence}W\n" for index, sequence in enumerate(new))
    reply = http.post(
        f"/embeddings/jobs/submit?model={MODEL}", content=fasta, headers={"content-type": "text/x-fasta"}
    )
    assert reply.status_code == 202, reply.text
    link = reply.json()["status_link"]
    wait_until(lambda: http.get(link).json()["status"] == "done", "the job is done")
    assert http.get(f"/embeddings/compute/{MODEL}", headers={"Authorization": ""}).status_code == 401


def may_be_without_data(expression: str) -> bool:
    return any(part in expression for part in WITHOUT_DATA)


def test_prometheus_has_taken_the_rules(prometheus: Prometheus) -> None:
    groups = prometheus.http.get("/api/v1/rules").json()["data"]["groups"]
    loaded = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert loaded.keys() == rules("record").keys() | rules("alert").keys()
    for rule in loaded.values():
        assert rule["health"] == "ok", rule


@pytest.mark.parametrize("query", dashboard_queries(), ids=lambda query: query.where)
def test_a_panel_shows_something(query: Query, prometheus: Prometheus) -> None:
    assert prometheus.ask(query.expression) or may_be_without_data(query.expression)


@pytest.mark.parametrize("name", rules("record"))
def test_a_recording_rule_records_something(name: str, prometheus: Prometheus) -> None:
    assert prometheus.ask(name) or may_be_without_data(name + rules("record")[name]["expr"])


@pytest.mark.parametrize("name", rules("alert"))
def test_an_alert_sees_what_it_watches_and_is_silent(name: str, prometheus: Prometheus) -> None:
    expression = rules("alert")[name]["expr"]
    assert prometheus.ask(expression) == [] or name in MAY_HOLD
    for metric in metrics_of(expression):
        assert prometheus.ask(metric) or may_be_without_data(metric), metric


@pytest.mark.parametrize("reason", WITHOUT_DATA)
def test_what_has_no_data_is_asked_for(reason: str) -> None:
    """A line of the list that nothing needs any more goes."""
    assert any(reason in query.expression for query in (*rule_queries(), *dashboard_queries()))


def test_the_cache_is_seen_to_work(prometheus: Prometheus) -> None:
    """Prometheus has the numbers of what was asked, and no others."""
    hits = prometheus.ask(filled('sum(embedding_cache_hits_total{job="$job"})'))
    asked = prometheus.ask(
        filled('sum(http_requests_total{job="$job", route="/embeddings/compute/{model}", status="200"})')
    )
    assert float(asked[0]["value"][1]) == 3 * NUM_ROUNDS
    assert float(hits[0]["value"][1]) == 3 * NUM_ROUNDS


def test_an_alert_fires_when_the_service_is_gone(service: LocalService, prometheus: Prometheus) -> None:
    """Last, as it ends the service."""
    service.stop()
    pending = 'ALERTS{alertname="ServiceDown", alertstate="pending"}'
    wait_until(lambda: bool(prometheus.ask(pending)), "ServiceDown is pending")
