"""Benchmarks of the running service, on esm2_mini with little work: what they print and write, never how fast."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from scripts import import_model
from scripts.benchmark import main
from scripts.benchmarks import null_engine
from scripts.benchmarks.large_replies import Sizes, measure
from scripts.benchmarks.services import Served
from scripts.local_service import ROOT, LocalService

MODEL = "esm2_mini"
DEADLINE_S = 60.0
SETTINGS = {"MODELS": MODEL, "GATEWAY_WORKERS": "1"}


@pytest.fixture(scope="module")
def stored_model() -> None:
    """In the tests' own model store, where the service's processes look too."""
    with contextlib.redirect_stdout(io.StringIO()):
        import_model.main([MODEL, "--if-missing"])


@pytest.fixture(scope="module")
def url(stored_model: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with LocalService(tmp_path_factory.mktemp("data"), SETTINGS) as service:
        yield service.url


def line_of(folder: Path, *arguments: str) -> dict[str, Any]:
    """Runs a benchmark and gives its JSON line, which must come last, behind a table."""
    printed, path = io.StringIO(), folder / "line.json"
    with contextlib.redirect_stdout(printed):
        main([*arguments, "--model", MODEL, "--json", str(path)])
    lines = printed.getvalue().splitlines()
    assert lines[-1] == path.read_text().rstrip()
    assert any(line.startswith("| --") for line in lines)
    found: dict[str, Any] = json.loads(lines[-1])
    assert found["model"] == MODEL
    return found


HTTP_SIZE = ("--clients", "2", "--per-request", "2", "--requests", "1", "--rounds", "2", "--max-length", "60")


def test_http_does_the_engines_work_and_meets_no_cache(url: str, tmp_path: Path) -> None:
    line = line_of(tmp_path, "http", "--url", url, *HTTP_SIZE)
    assert line["failures"] == {}
    assert line["cache_hits"] == 0
    assert line["latencies"]["service, pooled"]["num"] == line["latencies"]["service, per residue"]["num"] == 4
    # The same engine; a reply's float16 is all that differs. A mean with a residue less is below 0.999
    assert line["least_cosine"]["service, pooled"] > 0.999999


def test_http_in_slices_does_the_same_work_and_tells_no_latencies(stored_model: None, tmp_path: Path) -> None:
    line = line_of(tmp_path, "http", "--slice", "0.01", *HTTP_SIZE)
    assert (line["failures"], line["latencies"], line["cache_hits"]) == ({}, {}, 0)
    assert line["least_cosine"]["service, pooled"] > 0.999999


def test_http_in_slices_needs_a_service_of_its_own(url: str) -> None:
    with pytest.raises(SystemExit, match="--slice: the service at --url cannot be stopped"):
        main(["http", "--model", MODEL, "--url", url, "--slice", "0.4"])


def is_stopped(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


def test_who_ends_a_benchmark_ends_what_it_started(stored_model: None) -> None:
    """Processes that are stopped at the moment too; and the work that is left is not waited for."""
    command = [sys.executable, "-m", "scripts.benchmark", "http", "--model", MODEL]
    size = ("--requests", "300", "--per-request", "1", "--max-length", "60")
    process = subprocess.Popen([*command, "--slice", "0.05", *size], cwd=ROOT)
    started: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not any(map(is_stopped, started)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            started = psutil.Process(process.pid).children(recursive=True)
            time.sleep(0.01)
        process.terminate()
        assert process.wait(DEADLINE_S) == -signal.SIGINT
        _, alive = psutil.wait_procs(started, timeout=DEADLINE_S)
        assert not alive
    finally:
        for kill in (process.kill, *(one.kill for one in started)):
            with contextlib.suppress(psutil.NoSuchProcess):
                kill()
        process.wait()


def test_cache_measures_hits_of_both_forms(url: str, tmp_path: Path) -> None:
    size = ("--requests", "3", "--seconds", "0.1", "--max-length", "60")
    line = line_of(tmp_path, "cache", "--url", url, *size)
    assert line["latencies"].keys() == line["requests_per_s"].keys() == {"summary", "npz"}
    assert all(by_num.keys() == {"1", "100"} for by_num in line["latencies"].values())


def test_fairness_measures_before_and_after_a_burst_and_beside_large_ones(url: str, tmp_path: Path) -> None:
    lengths = ("--small", "30", "--burst-length", "40", "--beside-length", "50", "--large", "10")
    line = line_of(tmp_path, "fairness", "--url", url, *lengths, "--lone", "3", "--beside", "3", "--bursts", "2")
    assert line["service"]["beside"]["num"] == 3
    assert line["service"]["most_after_of_idle"] >= line["service"]["first_after_of_idle"] > 0
    assert line["service"].keys() >= {"idle_ms", "first_after_of_idle", "next_after_of_idle", "beside_p99_batches"}


def test_overload_counts_every_request_that_was_sent(url: str, tmp_path: Path) -> None:
    times = ("--seconds", "1", "--capacity-seconds", "0.5", "--clients", "2", "--max-length", "60")
    line = line_of(tmp_path, "overload", "--url", url, *times)
    assert line["unexpected"] == {}
    assert sum(line["statuses"].values()) == line["num_sent"] > 0


def test_outputs_compares_writers(stored_model: None, tmp_path: Path) -> None:
    line = line_of(tmp_path, "outputs", "--num", "2", "--rounds", "1", "--max-length", "60")
    for written in line["writers"].values():
        assert written.keys() == {"NpzWriter", "np.savez_compressed", "np.savez"}
        assert written["np.savez"]["size_ratio"] > 1 > written["np.savez_compressed"]["size_ratio"]


def test_memory_is_watched_in_every_role_while_a_large_reply_is_made(stored_model: None, tmp_path: Path) -> None:
    sizes = Sizes(num=4, length=4000)
    with LocalService(tmp_path, SETTINGS, target=null_engine.SERVICE) as service:
        assert service.process is not None
        reply = measure(Served(service.url, MODEL, service.process.pid), sizes, is_npz=True, seed=0)
    assert reply.growth.keys() == {"gateway", "runner_esm2_mini", "redis"}
    assert all(one.peak_pss >= one.start_pss > 0 for one in reply.growth.values())


def test_scaling_loses_no_sequence_with_a_device(tmp_path: Path) -> None:
    size = ("--num", "200", "--max-length", "300", "--rate", "10_000_000", "--budget", "1000")
    line = line_of(tmp_path, "scaling", *size)
    assert line["devices"].keys() == {"1", "2", "4", "8"}
    assert line["loss"]["num_answered"] == line["num_sequences"] == 200
    assert line["loss"]["num_wrong"] == line["loss"]["num_failed"] == 0
