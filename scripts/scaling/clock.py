"""Simulated time: what happens when, in order.

A heap is enough. SimPy's resources have a fixed capacity and serve one request at a time; devices here come and go
and take batches from the service's own `Schedule`, so of SimPy only the event loop would be used.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable


class Clock:
    """now: seconds since the start. Events of the same time happen in the order in which they were set."""

    def __init__(self) -> None:
        self.now = 0.0
        self._tickets = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(time_s, self.now), next(self._tickets), action))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        self.at(self.now + delay_s, action)

    def every(self, period_s: float, action: Callable[[], None]) -> None:
        """Now, and for ever after; only a run with an end can have one."""

        def repeat() -> None:
            action()
            self.after(period_s, repeat)

        self.at(self.now, repeat)

    def run(self, until_s: float = math.inf) -> None:
        """All events up to this time, or all there are."""
        while self._events and self._events[0][0] <= until_s:
            self.now, _, action = heapq.heappop(self._events)
            action()
        if until_s < math.inf:
            self.now = until_s
