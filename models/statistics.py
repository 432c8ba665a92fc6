"""What a batcher has done, and how fast its devices are."""

from __future__ import annotations

from dataclasses import dataclass, field

# A batch that takes longer than this, in all and in times of what its cost lets expect, hangs
HANGS_AFTER_S = 8.0
HANGS_AFTER_TIMES = 5.0
UNKNOWN_S = 60.0  # instead of both, for a device that has not finished a batch yet: it may be compiling
RATE_MEMORY_S = 10.0  # of work, after which what is older counts half in a device's rate
# Of a batch's budget, that a device must do at once, or while more waits, for its rate to say what it can do: what
# is small takes as long as far more would (docs/decisions/0030-too-late-is-told-at-once.md)
TELLING_SHARE = 0.25
TELLING_S = 1.0  # of such work, behind which the rate is known: the first batches of all are slower


@dataclass
class DeviceStatistics:
    """Of one device since the start. budget: what it takes at a time now. cost_per_s: of its latest batches.

    is_rated: they were enough to tell what it can do. overdue_s: for which its batch has taken longer than one
    ever should; 0 while all is well.
    """

    budget: int
    num_batches: int = 0
    num_items: int = 0
    cost_per_s: float = 0.0
    is_rated: bool = False
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
class Work:
    """What was done, in the seconds that a device was busy with it."""

    cost: float = 0.0
    busy_s: float = 0.0

    @property
    def cost_per_s(self) -> float:
        return self.cost / max(self.busy_s, 1e-3)  # an event loop's clock may stand still for a millisecond

    def add(self, cost: float, busy_s: float) -> None:
        self.cost, self.busy_s = self.cost + cost, self.busy_s + busy_s

    def fade(self) -> None:
        """What is older than RATE_MEMORY_S counts half from now on."""
        if self.busy_s > RATE_MEMORY_S:
            self.cost, self.busy_s = self.cost / 2, self.busy_s / 2


@dataclass
class Pace:
    """How fast a device is while it has enough to do. Batches that run side by side share the time."""

    all: Work = field(default_factory=Work)
    telling: Work = field(default_factory=Work)
    spell: Work = field(default_factory=Work)  # since it had too little to do, or since this was enough to tell
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

    def add(self, cost: int, now: float, budget: int, is_last: bool) -> None:
        """Counts a batch that ends now, on a device with that budget. is_last: nothing else waited as it began."""
        busy_s, self.since = now - self.since, now
        self.all.add(cost, busy_s)
        self.all.fade()
        self.spell.add(cost, busy_s)
        if is_last and cost < TELLING_SHARE * budget:
            self.spell = Work()
        elif self.spell.cost >= TELLING_SHARE * budget:
            self.telling.add(self.spell.cost, self.spell.busy_s)
            self.telling.fade()
            self.spell = Work()

    @property
    def is_rated(self) -> bool:
        """Whether it had enough to do for long enough."""
        return self.telling.busy_s >= TELLING_S

    @property
    def cost_per_s(self) -> float:
        """Of the latest batches that tell what it can do; until there are any, of the others."""
        return (self.telling if self.is_rated else self.all).cost_per_s
