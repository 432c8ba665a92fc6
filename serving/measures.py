"""What Prometheus is told of requests; counted in each process, added up by prometheus_client."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import psutil
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from serving.ledger import Ledger

_DURATIONS_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
KINDS = ("embed", "rerank", "classify")


@cache
def measures_of_process() -> Measures:
    """The one that Prometheus reads; a name can be registered once."""
    return Measures()


class Measures:
    """Made once a registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str, mode: str = "livemostrecent") -> Gauge:
            return Gauge(name, text, labels, multiprocess_mode=mode, registry=registry)  # type: ignore[arg-type]

        def durations(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=_DURATIONS_S, registry=registry)

        self.requests = counter("http_requests", "Requests that were answered", "route", "method", "status")
        self.request_s = durations("http_request_duration_seconds", "From head to end", "route", "method")
        self.in_progress = gauge("http_requests_in_progress", "Requests that are worked on", mode="livesum")
        self.of_kind = {
            kind: (
                counter(f"inference_{kind}_requests", f"Requests to {kind}", "model", "status"),
                durations(f"inference_{kind}_duration_seconds", f"Of requests to {kind}", "model"),
                counter(f"inference_{kind}_items", f"Sequences or texts to {kind}", "model"),
            )
            for kind in KINDS
        }
        self.hits = counter("embedding_cache_hits", "Sequences that were in the cache", "model")
        self.misses = counter("embedding_cache_misses", "Sequences that were not", "model")
        self.read_bytes = counter("embedding_cache_read_bytes", "Embeddings read from the cache")
        self.written_bytes = counter("embedding_cache_written_bytes", "Embeddings written to the cache")
        self.redis_up = gauge("redis_up", "Whether Redis answers")
        self.redis_errors = counter("redis_errors", "Calls of Redis that failed", "use")
        self.windows = counter("sequence_windows", "Windows that long sequences were cut into", "model")
        self.runner_up = gauge("runner_up", "Whether a runner answers and has its model", "model")
        self.models_loaded = gauge("models_loaded_total", "Models whose runner answers")
        self.refused = counter("authentication_failures", "Requests without the right key", "reason")
        self.limited = counter("rate_limited_requests", "Requests over a caller's limit", "limit")
        self.lag_s = gauge(
            "event_loop_lag_seconds", "By how much the worst gateway worker is late", mode="livemax"
        )
        self.cpu = gauge("cpu_usage_percent", "Of the machine, all cores together")
        for counter_of, values in (
            (self.redis_errors, ("cache", "jobs", "limits")),
            (self.refused, ("missing", "unknown", "forbidden")),
            (self.limited, ("requests", "tokens")),
        ):
            for value in values:
                counter_of.labels(value)

    def expect(self, model: str, kind: str) -> None:
        """A model is served: its counters begin at 0, so that the first event is an increase."""
        requests, _, items = self.of_kind[kind]
        for status in ("success", "failure"):
            requests.labels(model, status)
        for counter in (items, self.hits, self.misses, self.windows):
            counter.labels(model)

    def note_inference(self, kind: str, ledger: Ledger, seconds: float, status: int) -> None:
        """A request that reached a model."""
        requests, durations, items = self.of_kind[kind]
        requests.labels(ledger.model, "success" if status < 400 else "failure").inc()
        durations.labels(ledger.model).observe(seconds)
        items.labels(ledger.model).inc(ledger.num_hits + ledger.num_misses)


def exposition(folder: Path | None) -> bytes:
    """What Prometheus reads: of all processes that share the folder, gauges of those alone that live.

    folder: in which they count; None: this process alone.
    """
    if folder is None:
        return generate_latest(REGISTRY)
    # As prometheus_client's mark_process_dead, which fails where another worker does the same at the same time
    for path in folder.glob("gauge_live*_*.db"):
        pid = int(path.stem.rpartition("_")[2])
        if pid != os.getpid() and not _lives(pid):
            path.unlink(missing_ok=True)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def _lives(pid: int) -> bool:
    """One that was killed is a zombie until BentoML looks after its processes."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
