"""What a batcher has done, and how fast its devices are."""

from __future__ import annotations

from dataclasses import dataclass

RATE_MEMORY_S = 10.0  # of work, after which what is older counts half in a device's rate


@dataclass
class DeviceStatistics:
    """Of one device since the start. budget: what it takes at a time now. cost_per_s: of its latest batches."""

    budget: int
    num_batches: int = 0
    num_items: int = 0
    cost_per_s: float = 0.0
    inflight_batches: int = 0
    is_lost: bool = False


@dataclass
class Statistics:
    """Counters since the start, and what waits and runs now.

    num_joined: items that were queued, running or just done for another caller. num_abandoned: that nobody wanted
    any more when their turn came. num_split: batches that were cut for want of memory. num_expired_calls: that ran
    out of time. num_rejected_calls: that met a full queue. num_calls: that were answered, call_s: and in how many
    seconds, one by one. busy_s: during which a device was at work, one by one too.
    """

    devices: list[DeviceStatistics]
    num_items: int = 0
    num_batches: int = 0
    num_joined: int = 0
    num_failed: int = 0
    num_abandoned: int = 0
    num_split: int = 0
    num_expired_calls: int = 0
    num_rejected_calls: int = 0
    num_calls: int = 0
    call_s: float = 0.0
    busy_s: float = 0.0
    queue_items: int = 0
    queue_cost: int = 0
    inflight_batches: int = 0


@dataclass
class Pace:
    """What a device has done in the time that it was busy. Batches that run side by side share that time."""

    cost: float = 0.0
    busy_s: float = 0.0
    since: float = 0.0

    def start(self, now: float) -> None:
        self.since = now

    def add(self, cost: int, now: float) -> float:
        """Counts a batch that ends now. Returns the rate, cost per second."""
        self.cost += cost
        self.busy_s += now - self.since
        self.since = now
        rate = self.cost / max(self.busy_s, 1e-3)  # an event loop's clock may stand still for a millisecond
        if self.busy_s > RATE_MEMORY_S:
            self.cost, self.busy_s = self.cost / 2, self.busy_s / 2
        return rate
