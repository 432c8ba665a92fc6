"""What Prometheus is told of a runner."""

from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from models.measures import RunnerMeasures
from models.statistics import Batch, DeviceStatistics, Statistics

M = {"model": "m"}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def measures(registry: CollectorRegistry) -> RunnerMeasures:
    return RunnerMeasures(registry)


def test_a_batch_is_counted_once_in_everything_that_it_is(
    measures: RunnerMeasures, registry: CollectorRegistry
) -> None:
    measures.note_batch("m", Batch(device=0, num_items=3, cost=70, began=0.0, seconds=0.2), 60, waited_s=0.03)
    measures.note_batch("m", Batch(device=0, num_items=1, cost=9, began=1.0, seconds=0.1), 8, waited_s=0.0)
    sums = {
        **{"batcher_batch_size": 4, "batcher_batch_tokens": 68, "batcher_batch_wait_time_seconds": 0.03},
        "batcher_inference_time_seconds": pytest.approx(0.3),
    }
    for name, expected in sums.items():
        assert registry.get_sample_value(f"{name}_count", M) == 2
        assert registry.get_sample_value(f"{name}_sum", M) == expected
    assert registry.get_sample_value("batcher_tokens_total", M) == 68


@pytest.mark.parametrize("status", ["success", "failure", "rejected", "expired"])
def test_a_call_is_counted_by_its_outcome(
    measures: RunnerMeasures, registry: CollectorRegistry, status: str
) -> None:
    measures.note_call("m", status, 0.5)  # type: ignore[arg-type]
    assert registry.get_sample_value("batcher_requests_total", {**M, "status": status}) == 1
    assert registry.get_sample_value("batcher_request_latency_seconds_sum", M) == 0.5


def test_counters_follow_those_of_the_batcher(measures: RunnerMeasures, registry: CollectorRegistry) -> None:
    device = DeviceStatistics(budget=4096)
    for items, busy_s in ((5, 0.5), (5, 0.5), (12, 2.0)):
        measures.note("m", ["cpu"], Statistics([device], num_items=items, busy_s=busy_s), {})
    assert registry.get_sample_value("batcher_sequences_total", M) == 12
    assert registry.get_sample_value("device_busy_seconds_total", M) == 2.0
    assert registry.get_sample_value("batcher_rejected_total", M) == 0, "there, though nothing happened"


def test_models_of_one_process_do_not_mix(measures: RunnerMeasures, registry: CollectorRegistry) -> None:
    device = DeviceStatistics(budget=1)
    measures.note("m", ["cpu"], Statistics([device], num_items=5), {})
    measures.note("n", ["cpu"], Statistics([device], num_items=7), {})
    measures.note("m", ["cpu"], Statistics([device], num_items=6), {})
    assert registry.get_sample_value("batcher_sequences_total", M) == 6
    assert registry.get_sample_value("batcher_sequences_total", {"model": "n"}) == 7


def test_gauges_say_how_things_are_now(measures: RunnerMeasures, registry: CollectorRegistry) -> None:
    devices = [
        DeviceStatistics(budget=10),
        DeviceStatistics(budget=5, is_lost=True),
        DeviceStatistics(7, overdue_s=3),
    ]
    now = Statistics(devices, queue_items=4, queue_cost=900, inflight_batches=2)
    measures.note("m", ["cuda:0", "cuda:1", "cuda:2"], now, {"cuda:0": (3, 80)})
    for name, expected in (("queue_size", 4), ("queue_tokens", 900), ("inflight_batches", 2)):
        assert registry.get_sample_value(f"batcher_{name}", M) == expected
    of = [{**M, "device": f"cuda:{number}"} for number in range(3)]
    assert [registry.get_sample_value("device_up", labels) for labels in of] == [1, 0, 0]
    assert [registry.get_sample_value("device_budget_tokens", labels) for labels in of] == [10, 5, 7]
    assert registry.get_sample_value("gpu_memory_used_bytes", {"device": "cuda:0"}) == 3
    assert registry.get_sample_value("gpu_memory_total_bytes", {"device": "cuda:0"}) == 80
    measures.note("m", ["cuda:0", "cuda:1", "cuda:2"], Statistics(devices), {})
    assert registry.get_sample_value("batcher_queue_size", M) == 0


def test_a_load_is_told_with_what_it_took(measures: RunnerMeasures, registry: CollectorRegistry) -> None:
    measures.note_load("m", 1.5, 7_000, 1_048_576)
    assert registry.get_sample_value("model_load_duration_seconds", M) == 1.5
    assert registry.get_sample_value("model_memory_bytes", M) == 7_000
    assert registry.get_sample_value("batcher_max_queue_tokens", M) == 1_048_576
    assert registry.get_sample_value("batcher_tokens_total", M) == 0


def test_the_names_are_those_that_dashboards_know(measures: RunnerMeasures, registry: CollectorRegistry) -> None:
    types = re.findall(r"^# TYPE (\S+)", generate_latest(registry).decode(), re.MULTILINE)
    assert set(types) == {
        *(
            "batcher_requests_total",
            "batcher_request_latency_seconds",
            "batcher_batch_size",
            "batcher_batch_tokens",
        ),
        *("batcher_batch_wait_time_seconds", "batcher_inference_time_seconds"),
        *("batcher_queue_size", "batcher_queue_tokens", "batcher_inflight_batches", "batcher_max_queue_tokens"),
        *("batcher_sequences_total", "batcher_tokens_total", "batcher_joined_total", "batcher_splits_total"),
        *("batcher_expired_total", "batcher_abandoned_total", "batcher_rejected_total", "batcher_failed_total"),
        *("device_up", "device_busy_seconds_total", "device_budget_tokens"),
        *("model_load_duration_seconds", "model_memory_bytes", "gpu_memory_used_bytes", "gpu_memory_total_bytes"),
    }
