"""What Prometheus is told of jobs; counted in each process, added up by prometheus_client."""

from __future__ import annotations

from functools import cache

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from serving.jobs.queue import Depth
from serving.jobs.records import ENDED

_DURATIONS_S = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600)


@cache
def measures_of_process() -> Measures:
    """The one that Prometheus reads; a name can be registered once."""
    return Measures()


class Measures:
    """Made once a registry. The gauges say what Redis holds, whichever process looked last."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, ["model"], multiprocess_mode="livemostrecent", registry=registry)

        self.queued = gauge("jobs_queued", "Jobs that wait for a worker")
        self.oldest = gauge("jobs_oldest_queued_seconds", "For how long the oldest of them has waited")
        self.running = gauge("jobs_running", "Jobs that are worked on")
        self.durations = Histogram(
            "job_duration_seconds",
            "From submission to the end of a job",
            ["model", "state"],
            buckets=_DURATIONS_S,
            registry=registry,
        )
        self.retries = Counter(
            "job_retries", "Jobs that were taken up again after a worker left", ["model"], registry=registry
        )
        self.windows = Counter("job_windows", "Windows of jobs that are done", ["model"], registry=registry)

    def expect(self, model: str) -> None:
        """A model is served: its counters begin at 0, so that the first event is an increase."""
        for state in ENDED:
            self.durations.labels(model, state)
        self.retries.labels(model)
        self.windows.labels(model)

    def note(self, model: str, depth: Depth) -> None:
        self.queued.labels(model).set(depth.num_queued)
        self.oldest.labels(model).set(depth.oldest_s)
        self.running.labels(model).set(depth.num_running)
