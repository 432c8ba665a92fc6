"""Engines fail: on one sequence, for want of memory, for good."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
import pytest

from tests.chaos.faults import FOLDER, NUM_DEVICES, POISON, Faults
from tests.chaos.running import RUNNER, Running, arrays_of, assert_same, proteins, running, wait_until

pytestmark = pytest.mark.chaos

DEVICES = 3
FULL_BUDGET = 4096
BATCH = 8  # sequences at most, so that a small request is several batches
TARGET = "tests.chaos.faulty_service:ProteinEmbeddingService"


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Faults:
    return Faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def module_service(
    faults: Faults, stored_model: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    environment = {FOLDER: str(faults.folder), NUM_DEVICES: str(DEVICES)}
    environment |= {"GATEWAY_WORKERS": "1", "BATCH_QUEUE_MAX_SIZE": str(BATCH)}
    with running(tmp_path_factory.mktemp("faulty"), TARGET, **environment) as service:
        yield service


@pytest.fixture
def faulty(module_service: Running, faults: Faults) -> Iterator[Running]:
    """One gateway worker, and a runner with three devices, all well."""
    if any(device["is_lost"] for device in devices(module_service)):
        (runner,) = module_service.workers(RUNNER)
        runner.kill()
        psutil.wait_procs([runner])
    module_service.assert_well()
    yield module_service
    faults.clear()
    module_service.assert_well()


def devices(service: Running) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = service.info()["per_device"]
    return found


@contextmanager
def held(
    service: Running, faults: Faults, requests: Sequence[Sequence[str]]
) -> Iterator[list[Future[httpx.Response]]]:
    """Inside, every device has a batch of the requests that it does not begin; behind that they go on."""
    total = sum(len(sequences) for sequences in requests)
    faults.hold.touch()
    with ThreadPoolExecutor(len(requests)) as pool:
        try:
            answers = [pool.submit(service.post, sequences) for sequences in requests]
            wait_until(lambda: all(device["inflight_batches"] for device in devices(service)), "all are busy")
            most = total - DEVICES * BATCH
            wait_until(lambda: service.batcher()["queue_items"] >= most, "the runner has every request")
            yield answers
        finally:
            faults.hold.unlink(missing_ok=True)


def test_one_poisoned_sequence_of_64_fails_alone(faulty: Running) -> None:
    sequences = proteins(64, seed=100, length=60)
    expected = faulty.expect([sequences])[0]
    sequences[40] = sequences[40][:50] + POISON
    reply = faulty.summary(sequences)
    errors = {result["index"]: result["error"] for result in reply["results"] if result["error"]}
    assert list(errors) == [40]
    assert "the model failed on this sequence (RuntimeError)" in errors[40]
    file = faulty.http.get(reply["download_link"])
    assert_same(arrays_of(file), expected[:40] + expected[41:])
    assert not any(device["is_lost"] for device in devices(faulty))


def test_a_shortage_of_memory_shrinks_the_budget_loses_nothing_and_passes(faulty: Running, faults: Faults) -> None:
    requests = [proteins(12, seed, length=60) for seed in range(110, 116)]
    expected = faulty.expect(requests)
    before = faulty.batcher()
    faults.memory.write_text("4")
    with held(faulty, faults, requests) as answers:
        pass
    for answer, right in zip(answers, expected, strict=True):
        assert_same(arrays_of(answer.result()), right)
    after = faulty.batcher()
    assert after["num_split"] > before["num_split"]
    assert after["num_failed"] == before["num_failed"]
    assert all(device["budget"] < FULL_BUDGET for device in devices(faulty))

    faults.memory.unlink()
    seeds = iter(range(10_000, 20_000))

    def has_recovered() -> bool:
        faulty.embed(proteins(90, next(seeds), length=10))
        return all(device["budget"] == FULL_BUDGET for device in devices(faulty))

    wait_until(has_recovered, "every device takes full batches again")
    assert faulty.batcher()["num_split"] == after["num_split"]


def test_a_sequence_too_large_for_the_memory_fails_alone(faulty: Running, faults: Faults) -> None:
    faults.memory.write_text("0")
    refused = faulty.post(proteins(1, seed=120))
    assert (refused.status_code, refused.json()["error"]) == (500, "Inference failed")
    assert "300 residues are more than the memory of cpu holds" in refused.json()["detail"]


def test_what_a_lost_device_held_goes_to_the_others(faulty: Running, faults: Faults) -> None:
    requests = [proteins(12, seed, length=60) for seed in range(130, 136)]
    expected = faulty.expect(requests)
    (runner,) = faulty.workers(RUNNER)
    with held(faulty, faults, requests) as answers:
        faults.loss(1).touch()
    for answer, right in zip(answers, expected, strict=True):
        assert_same(arrays_of(answer.result()), right)
    assert [device["is_lost"] for device in devices(faulty)] == [False, True, False]
    before = devices(faulty)[1]["num_batches"]
    faulty.embed(proteins(90, seed=136, length=10))
    assert devices(faulty)[1]["num_batches"] == before
    assert faulty.workers(RUNNER) == [runner]


def test_with_the_last_device_the_runner_starts_anew_and_no_request_is_lost(
    faulty: Running, faults: Faults
) -> None:
    requests = [proteins(12, seed, length=60) for seed in range(140, 146)]
    expected = faulty.expect(requests)
    (runner,) = faulty.workers(RUNNER)
    with held(faulty, faults, requests) as answers:
        for device in range(DEVICES):
            faults.loss(device).touch()
        faults.hold.unlink()
        wait_until(lambda: not list(faults.folder.iterdir()), "all devices are lost")
        refused = faulty.post(proteins(1, seed=146))
        assert (refused.status_code, refused.json()["error"]) == (503, "Runner unavailable")
        assert int(refused.headers["retry-after"]) > 0
        assert not any(answer.done() for answer in answers)
    for answer, right in zip(answers, expected, strict=True):
        assert_same(arrays_of(answer.result()), right)
    (successor,) = faulty.workers(RUNNER)
    assert successor.pid != runner.pid
    assert [device["is_lost"] for device in devices(faulty)] == [False] * DEVICES
