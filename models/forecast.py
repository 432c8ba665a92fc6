"""How long it will take what waits, by the rate of the devices' latest batches."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Generic, TypeVar

from models.schedule import Schedule
from models.statistics import DeviceStatistics, Statistics

ItemT = TypeVar("ItemT", bound=Hashable)

PUNCTUAL_SHARE = 0.8  # of a caller's time, in which it is to be answered as far as can be foreseen
RETRY_AFTER_S = (1.0, 60.0)  # the least and the most that a caller is told to wait


class Forecast(Generic[ItemT]):
    """Of a queue and the devices that drain it. Costs are in tokens' worth of arithmetic, times in seconds."""

    def __init__(self, statistics: Statistics, queue: Schedule[ItemT]) -> None:
        self._statistics = statistics
        self._queue = queue
        self.running = 0  # cost of the batches that are under way

    @property
    def cost_per_s(self) -> float:
        """Of all devices that are left, as far as is known; 0 before any has finished a batch."""
        return sum(device.cost_per_s for device in self._statistics.live)

    @property
    def is_known(self) -> bool:
        """Whether the rate is what the devices can do, and not just what they had to do so far.

        One that has not finished a batch yet has no part in it.
        """
        are_rated = [device.is_rated for device in self._statistics.live if device.cost_per_s]
        return bool(are_rated) and all(are_rated)

    def drain_s(self) -> float:
        """In how many seconds what waits now will have been worked off, as a caller is told."""
        rate = self.cost_per_s
        return _bounded(self._queue.cost / rate if rate else 0.0)

    def has_time(self, own: int, timeout_s: float) -> bool:
        """Whether a call of this cost is in time even behind everything, or would be late by itself alone."""
        most = PUNCTUAL_SHARE * timeout_s * self.cost_per_s
        return not self.is_known or not own or own > most or self.running + self._queue.cost + own <= most

    def late_s(self, own: int, due: float, timeout_s: float) -> float | None:
        """In how many seconds a call that is due then might be in time, as its caller is told; None if it is now.

        Ahead of it are what runs and what is due before; beside it, what else is in its batch.
        """
        before = self._queue.cost_before(due)
        beside = min(sum(device.budget for device in self._statistics.live), self._queue.cost - before + own)
        late = self.running + before + max(own, beside) - PUNCTUAL_SHARE * timeout_s * self.cost_per_s
        return _bounded(late / self.cost_per_s) if before and late > 0 else None

    def end_of_batch(self, device: DeviceStatistics, now: float, room: int, num_beside: int) -> float:
        """When a batch that begins now ends, of as much as there is room for, on one of so many equal parts."""
        if not device.is_rated:
            return -math.inf
        return now + num_beside * min(room, self._queue.cost) / device.cost_per_s


def _bounded(retry_after_s: float) -> float:
    least, most = RETRY_AFTER_S
    return min(most, max(least, retry_after_s))
