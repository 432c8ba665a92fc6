"""What waits for a device, and in which order it goes. No clock, no thread, no device: the caller says when.

Every item is due at a time of its own, and goes in that order. Whoever puts it in says when: a bounded time
ahead, so that nothing waits for ever behind what comes later (docs/decisions/0015-who-goes-first.md).
"""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

ItemT = TypeVar("ItemT")

# How many times slower than alone a call may be before it goes first. Due times of this kind, in order, keep the
# largest slowdown small: Bender et al. 1998, Flow and stretch metrics
STRETCH = 10.0

# A probe is as urgent as what somebody waits for, but nobody who may come again
Priority = Literal["interactive", "bulk", "probe"]
# Seconds by which an item is due after it came: bulk work goes behind what is urgent, for so long and no longer
DELAYS_S: dict[Priority, float] = {"interactive": 0.0, "bulk": 10.0, "probe": 0.0}
# Of a batch's budget, up to which bulk work may join what somebody waits for, or go by itself while somebody may
# come: it would make that slower
BULK_SHARE = 0.5


@dataclass(eq=False)
class Entry(Generic[ItemT]):
    """One item that waits, and for how many callers.

    cost: in tokens' worth of arithmetic. arrived, due, deadline: on the caller's clock, in seconds; nobody waits
    for it any more behind the last.
    goes_alone: in a batch of its own. wants_device: and on a device that computes nothing else meanwhile.
    """

    item: ItemT
    cost: int
    arrived: float
    due: float
    is_bulk: bool = False
    num_callers: int = 1
    deadline: float = math.inf
    goes_alone: bool = False
    wants_device: bool = False
    is_waiting: bool = field(default=False, init=False)
    ticket: int | None = field(default=None, init=False)  # what is due at the same time goes in this order


class Schedule(Generic[ItemT]):
    """A queue in order of due times. `cost` and `size` are those of what waits."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Entry[ItemT]]] = []
        self._tickets = itertools.count()
        self.cost = 0
        self.size = 0

    def put(self, entry: Entry[ItemT]) -> None:
        """A new entry, or one that a device could not run: that one keeps its turn."""
        entry.is_waiting = True
        self.cost += entry.cost
        self.size += 1
        self._place(entry)

    def join(self, entry: Entry[ItemT], due: float, is_bulk: bool = False, deadline: float = math.inf) -> None:
        """One more caller for an entry, which goes as early as the most urgent of them wants."""
        entry.num_callers += 1
        entry.deadline = max(entry.deadline, deadline)
        entry.is_bulk &= is_bulk
        if due < entry.due:
            entry.due = due
            if entry.is_waiting:
                self._place(entry)

    def leave(self, entry: Entry[ItemT]) -> bool:
        """One caller less. Whether the entry has left the queue with the last of them."""
        entry.num_callers -= 1
        if entry.num_callers or not entry.is_waiting:
            return False
        self._take(entry)
        if len(self._heap) > 2 * self.size:  # what has left stays in the heap, but never most of it
            self._heap = [place for place in self._heap if self._is_current(place)]
            heapq.heapify(self._heap)
        return True

    def first(self) -> Entry[ItemT] | None:
        """The entry whose turn it is; None if nothing waits."""
        while self._heap and not self._is_current(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def cost_before(self, due: float) -> int:
        """Of what goes before something that is due then. Looks at everything that waits."""
        return sum(place[2].cost for place in self._heap if place[0] <= due and self._is_current(place))

    def pick(
        self, budget: int, max_items: int, holds_bulk_back: bool = False, ends_at: float = -math.inf
    ) -> list[Entry[ItemT]]:
        """The next entries in order, as much as the budget holds, one at least; one that goes alone, alone.

        Bulk work joins others up to BULK_SHARE of the budget, and when it is held back has no more by itself.
        For what nobody waits until `ends_at` is passed over, unless nothing else waits.
        """
        batch: list[Entry[ItemT]] = []
        passed: list[Entry[ItemT]] = []
        spent = 0
        is_bulk = True
        while (entry := self.first()) is not None:
            if entry.deadline < ends_at:
                heapq.heappop(self._heap)
                passed.append(entry)
                continue
            is_among_bulk = is_bulk and not holds_bulk_back
            room = budget if is_among_bulk or not entry.is_bulk else BULK_SHARE * budget
            if batch and (
                spent + entry.cost > room or len(batch) >= max_items or entry.goes_alone or batch[0].goes_alone
            ):
                break
            spent += entry.cost
            is_bulk &= entry.is_bulk
            heapq.heappop(self._heap)
            self._take(entry)
            batch.append(entry)
        for entry in passed:
            self._place(entry)
        return batch or (self.pick(budget, max_items, holds_bulk_back) if passed else [])

    def take_all(self) -> list[Entry[ItemT]]:
        """Everything that waits, in order."""
        entries: list[Entry[ItemT]] = []
        while self.size:
            entries += self.pick(budget=self.cost, max_items=self.size)
        return entries

    def _place(self, entry: Entry[ItemT]) -> None:
        if entry.ticket is None:
            entry.ticket = next(self._tickets)
        heapq.heappush(self._heap, (entry.due, entry.ticket, entry))

    def _take(self, entry: Entry[ItemT]) -> None:
        entry.is_waiting = False
        self.cost -= entry.cost
        self.size -= 1

    @staticmethod
    def _is_current(place: tuple[float, int, Entry[ItemT]]) -> bool:
        due, _, entry = place
        return entry.is_waiting and due == entry.due
