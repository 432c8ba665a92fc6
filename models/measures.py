"""What Prometheus is told of a runner: its batches as they end, its counters and devices once a second."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal, get_args

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from models.statistics import Batch, Statistics

Status = Literal["success", "failure", "rejected", "expired"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = (64, 256, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072, 262_144)
# Counters by the field of Statistics that they follow
_COUNTERS = {
    "num_items": ("batcher_sequences", "Sequences that were worked on"),
    "num_joined": ("batcher_joined", "Sequences that were under way or just done for another caller"),
    "num_failed": ("batcher_failed", "Sequences that failed"),
    "num_abandoned": ("batcher_abandoned", "Sequences that nobody wanted any more"),
    "num_split": ("batcher_splits", "Batches that were cut for want of memory"),
    "num_expired_calls": ("batcher_expired", "Calls that ran out of time"),
    "num_rejected_calls": (
        "batcher_rejected",
        "Calls that met a full queue, or came too late for an answer in time",
    ),
    "busy_s": ("device_busy_seconds", "During which devices were at work"),
}


@cache
def measures_of_process() -> RunnerMeasures:
    """The one that Prometheus reads; a name can be registered once."""
    return RunnerMeasures()


class RunnerMeasures:
    """Made once a registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, multiprocess_mode="livemostrecent", registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(name, text, ["model"], buckets=buckets, registry=registry)

        self._requests = Counter(
            "batcher_requests", "Calls of the gateway", ["model", "status"], registry=registry
        )
        self._latency_s = histogram("batcher_request_latency_seconds", "Of a call, queue and device", _SECONDS)
        self._batch_size = histogram("batcher_batch_size", "Sequences of a batch", _SEQUENCES)
        self._batch_tokens = histogram("batcher_batch_tokens", "Tokens of a batch", _TOKENS)
        self._wait_s = histogram("batcher_batch_wait_time_seconds", "Longest wait in a batch", _SECONDS)
        self._inference_s = histogram("batcher_inference_time_seconds", "Of a batch on its device", _SECONDS)
        self._tokens = Counter("batcher_tokens", "Tokens that were worked on", ["model"], registry=registry)
        self._counters = {
            field: Counter(name, text, ["model"], registry=registry) for field, (name, text) in _COUNTERS.items()
        }
        self._queue_size = gauge("batcher_queue_size", "Sequences that wait", "model")
        self._queue_tokens = gauge("batcher_queue_tokens", "Cost of what waits, in tokens", "model")
        self._max_queue_tokens = gauge("batcher_max_queue_tokens", "Cost from which on nothing is let in", "model")
        self._inflight = gauge("batcher_inflight_batches", "Batches on devices", "model")
        self._up = gauge("device_up", "Whether a device works", "model", "device")
        self._budget = gauge("device_budget_tokens", "What a device takes at a time now", "model", "device")
        self._load_s = gauge("model_load_duration_seconds", "Of the load of a model", "model")
        self._memory = gauge(
            "model_memory_bytes", "By which loading a model made memory grow, all devices", "model"
        )
        self._gpu_used = gauge("gpu_memory_used_bytes", "Of all processes on a GPU", "device")
        self._gpu_total = gauge("gpu_memory_total_bytes", "That a GPU has", "device")
        self._seen: defaultdict[tuple[str, str], float] = defaultdict(float)

    def note_load(self, model: str, seconds: float, memory_bytes: int, max_queue_tokens: float) -> None:
        """A model is there."""
        self._load_s.labels(model).set(seconds)
        self._memory.labels(model).set(memory_bytes)
        self._max_queue_tokens.labels(model).set(max_queue_tokens)
        # Counters begin at 0, so that the first event is an increase
        self._tokens.labels(model)
        for status in get_args(Status):
            self._requests.labels(model, status)

    def note_batch(self, model: str, batch: Batch, num_tokens: int, waited_s: float) -> None:
        """A batch that is done; waited_s: the longest of its sequences."""
        self._batch_size.labels(model).observe(batch.num_items)
        self._batch_tokens.labels(model).observe(num_tokens)
        self._wait_s.labels(model).observe(waited_s)
        self._inference_s.labels(model).observe(batch.seconds)
        self._tokens.labels(model).inc(num_tokens)

    def note_call(self, model: str, status: Status, seconds: float) -> None:
        """A call of a gateway that is answered."""
        self._requests.labels(model, status).inc()
        self._latency_s.labels(model).observe(seconds)

    def note(
        self,
        model: str,
        devices: Sequence[str],
        statistics: Statistics,
        gpu_memory: Mapping[str, tuple[int, int]],
    ) -> None:
        """How things are now. devices: their names. gpu_memory: bytes used and in all, by device."""
        for field, counter in self._counters.items():
            now = float(getattr(statistics, field))
            counter.labels(model).inc(now - self._seen[model, field])
            self._seen[model, field] = now
        self._queue_size.labels(model).set(statistics.queue_items)
        self._queue_tokens.labels(model).set(statistics.queue_cost)
        self._inflight.labels(model).set(statistics.inflight_batches)
        for name, device in zip(devices, statistics.devices, strict=True):
            self._up.labels(model, name).set(int(not device.is_lost and not device.overdue_s))
            self._budget.labels(model, name).set(device.budget)
        for name, (used, total) in gpu_memory.items():
            self._gpu_used.labels(name).set(used)
            self._gpu_total.labels(name).set(total)
