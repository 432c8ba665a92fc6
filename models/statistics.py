"""What a batcher has done, and how fast its devices are."""

from __future__ import annotations

from dataclasses import dataclass, field

# A batch that takes longer than this, in all and in times of what its cost lets expect, hangs
HANGS_AFTER_S = 8.0
HANGS_AFTER_TIMES = 5.0
UNKNOWN_S = 60.0  # instead of both, for a device that has not finished a batch yet: it may be compiling
RATE_MEMORY_S = 10.0  # of work, after which what is older counts half in a device's rate


@dataclass
class DeviceStatistics:
    """Of one device since the start. budget: what it takes at a time now. cost_per_s: of its latest batches.

    overdue_s: for which its batch has taken longer than one ever should; 0 while all is well.
    """

    budget: int
    num_batches: int = 0
    num_items: int = 0
    cost_per_s: float = 0.0
    inflight_batches: int = 0
    is_lost: bool = False
    overdue_s: float = 0.0


@dataclass
class Statistics:
    """Counters since the start, and what waits and runs now.

    num_joined: items that were queued, running or just done for another caller. num_abandoned: that nobody wanted
    any more when their turn came. num_split: batches that were cut for want of memory. num_expired_calls: that ran
    out of time. num_rejected_calls: that met a full queue, or came too late. num_calls: that were answered,
    call_s: and in how many seconds, one by one. busy_s: during which a device was at work, one by one too.
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

    @property
    def live(self) -> list[DeviceStatistics]:
        """The devices that are left."""
        return [device for device in self.devices if not device.is_lost]


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch on a device. began: by the event loop's clock; seconds: until it was done."""

    device: int
    num_items: int
    cost: int
    began: float
    seconds: float


@dataclass
class Pace:
    """What a device has done in the time that it was busy. Batches that run side by side share that time."""

    cost: float = 0.0
    busy_s: float = 0.0
    since: float = 0.0
    due: dict[int, float] = field(default_factory=dict)  # of each batch that runs: when it should be done
    num_expected: int = 0

    def expect(self, cost: int, now: float, cost_per_s: float) -> int:
        """A batch begins. Returns a ticket, for `forget`."""
        allowed_s = HANGS_AFTER_S + HANGS_AFTER_TIMES * cost / cost_per_s if cost_per_s else UNKNOWN_S
        self.num_expected += 1
        self.due[self.num_expected] = now + allowed_s
        return self.num_expected

    def forget(self, ticket: int) -> None:
        """It is over, one way or another."""
        del self.due[ticket]

    def overdue_s(self, now: float) -> float:
        """By how much the latest batch is late."""
        return max([0.0, *(now - due for due in self.due.values())])

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
