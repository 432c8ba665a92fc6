"""What Prometheus is told: names, and sums over processes that come and go."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from scripts.local_service import ROOT
from serving.ledger import Ledger
from serving.measures import KINDS, Measures, exposition, measures_of_process

# A gateway worker that has counted something, and lives until its standard input ends
WORKER = """
import sys
from serving.measures import measures_of_process
measures = measures_of_process()
measures.requests.labels("/x", "GET", "200").inc(int(sys.argv[1]))
measures.in_progress.inc(int(sys.argv[1]))
measures.lag_s.set(float(sys.argv[1]))
measures.runner_up.labels("m").set(1)
print("counted", flush=True)
sys.stdin.read()
"""


class Worker:
    """A process that shares the folder."""

    def __init__(self, folder: Path, number: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(number)],
            cwd=ROOT,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def wait_until_counted(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"counted\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def samples(page: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def test_workers_are_added_up_and_gauges_of_the_dead_vanish(tmp_path: Path) -> None:
    workers = [Worker(tmp_path, 2), Worker(tmp_path, 5)]
    for worker in workers:
        worker.wait_until_counted()
    requests = ("http_requests_total", (("method", "GET"), ("route", "/x"), ("status", "200")))
    found = samples(exposition(tmp_path))
    assert found[requests] == 7
    assert found["http_requests_in_progress", ()] == 7
    assert found["event_loop_lag_seconds", ()] == 5, "the worst worker's"
    assert found["runner_up", (("model", "m"),)] == 1, "not once a worker"
    workers[1].kill()
    found = samples(exposition(tmp_path))
    assert found[requests] == 7, "what was counted stays"
    assert (found["http_requests_in_progress", ()], found["event_loop_lag_seconds", ()]) == (2, 2)
    workers[0].process.kill()
    os.waitid(os.P_PID, workers[0].process.pid, os.WEXITED | os.WNOWAIT)  # dead, and nobody has looked after it
    found = samples(exposition(tmp_path))
    assert found[requests] == 7
    assert not {"http_requests_in_progress", "event_loop_lag_seconds", "runner_up"} & {name for name, _ in found}
    workers[0].kill()


def test_workers_that_find_the_same_dead_do_not_trip_over_each_other(tmp_path: Path) -> None:
    """Several are asked at once; each file is deleted by one of them."""
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    pid = int(gone.stdout)
    for _ in range(20):
        for mode in ("liveall", "livesum", "livemax", "livemin", "livemostrecent"):
            (tmp_path / f"gauge_{mode}_{pid}.db").touch()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: exposition(tmp_path), range(4)))
        assert list(tmp_path.iterdir()) == []


def test_a_process_alone_tells_of_itself() -> None:
    measures_of_process()
    assert b"http_requests_in_progress" in exposition(None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_to_a_model_is_counted_with_its_outcome(kind: str) -> None:
    registry = CollectorRegistry()
    measures = Measures(registry)
    ledger = Ledger(kind=kind, model="m", num_hits=1, num_misses=2)
    measures.note_inference(kind, ledger, 0.2, 200)
    measures.note_inference(kind, ledger, 0.2, 429)
    measures.note_inference(kind, ledger, 0.2, 503)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"model": "m", **labels})

    assert value(f"inference_{kind}_requests_total", status="success") == 1
    assert value(f"inference_{kind}_requests_total", status="failure") == 2
    assert value(f"inference_{kind}_items_total") == 9
    assert value(f"inference_{kind}_duration_seconds_count") == 3


def test_the_names_are_those_that_dashboards_know() -> None:
    registry = CollectorRegistry()
    Measures(registry)
    types = re.findall(r"^# TYPE (\S+)", generate_latest(registry).decode(), re.MULTILINE)
    names = {name for name in types if not name.endswith("_created")}
    of_kind = ("requests_total", "duration_seconds", "items_total")
    models = {f"inference_{kind}_{what}" for kind in KINDS for what in of_kind}
    assert names == models | {
        *("http_requests_total", "http_request_duration_seconds", "http_requests_in_progress"),
        *("embedding_cache_hits_total", "embedding_cache_misses_total"),
        *("embedding_cache_read_bytes_total", "embedding_cache_written_bytes_total"),
        *("redis_up", "redis_errors_total", "sequence_windows_total", "runner_up", "models_loaded_total"),
        *("authentication_failures_total", "rate_limited_requests_total"),
        *("event_loop_lag_seconds", "cpu_usage_percent"),
    }
