"""The adaptive batcher: many callers' items into batches for the devices, results back to their callers.

It knows nothing of tensors: an item has a cost, a device is a function of a list of items.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT", bound=Hashable)
ResultT = TypeVar("ResultT")

CLOSED = "the batcher was closed"

# A blocking function: one result an item, in order; an item that fails gets its exception
Device = Callable[[Sequence[ItemT]], Sequence[ResultT | Exception]]


@dataclass
class Statistics:
    """Counters since the start, and what waits now."""

    num_batches: int = 0
    num_items: int = 0
    num_joined: int = 0
    num_failed: int = 0
    queue_items: int = 0
    queue_cost: int = 0
    inflight_batches: int = 0


@dataclass(eq=False)
class _Entry(Generic[ItemT, ResultT]):
    item: ItemT
    cost: int
    result: asyncio.Future[ResultT | Exception]


class Batcher(Generic[ItemT, ResultT]):
    """One queue, drained by every device.

    Work-conserving: a device that is free takes what waits, at once, up to the budget, whoever asked.
    Equal items are computed once: who asks for one that is queued, running or just done gets the same result.

    Args:
        devices: each runs its batches one after another in a thread of its own.
        cost: of an item, in tokens' worth of arithmetic.
        budget: cost of a batch at most; a dearer item runs alone.
        lingers: whether an item's result may be kept for `linger_s` after it is done, so that a caller who
            looked into the cache just before the result was written there still joins.
    """

    def __init__(
        self,
        devices: Sequence[Device[ItemT, ResultT]],
        cost: Callable[[ItemT], int],
        budget: int,
        lingers: Callable[[ItemT], bool] = lambda _: False,
        linger_s: float = 1.0,
    ) -> None:
        self.statistics = Statistics()
        self._devices = devices
        self._cost = cost
        self.budget = budget
        self._lingers = lingers
        self._linger_s = linger_s
        self._queue: deque[_Entry[ItemT, ResultT]] = deque()
        self._joinable: dict[ItemT, asyncio.Future[ResultT | Exception]] = {}
        self._work = asyncio.Condition()
        self._threads = ThreadPoolExecutor(len(devices), thread_name_prefix="device")
        self._loops: list[asyncio.Task[None]] = []
        self._is_closed = False

    async def run(self, items: Sequence[ItemT]) -> list[ResultT | Exception]:
        """One result an item, in order. An item's own failure is its result; it never fails another."""
        if self._is_closed:
            return [RuntimeError(CLOSED) for _ in items]
        if not self._loops:
            self._loops = [asyncio.create_task(self._drain(device)) for device in self._devices]
        results = [self._enter(item) for item in items]
        async with self._work:
            self._work.notify_all()
        return list(await asyncio.gather(*results))

    async def close(self) -> None:
        """Ends behind the batches that are running, which are answered; what is queued or comes later fails."""
        self._is_closed = True
        while batch := self._take():
            for entry in batch:
                self._resolve(entry, RuntimeError(CLOSED))
        async with self._work:
            self._work.notify_all()
        await asyncio.gather(*self._loops)
        self._threads.shutdown()

    def _enter(self, item: ItemT) -> asyncio.Future[ResultT | Exception]:
        if (result := self._joinable.get(item)) is not None:
            self.statistics.num_joined += 1
            return asyncio.shield(result)
        entry = _Entry(item, self._cost(item), asyncio.get_running_loop().create_future())
        self._joinable[item] = entry.result
        self._queue.append(entry)
        self.statistics.queue_items += 1
        self.statistics.queue_cost += entry.cost
        return asyncio.shield(entry.result)

    async def _drain(self, device: Device[ItemT, ResultT]) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_closed:
            async with self._work:
                await self._work.wait_for(lambda: self._queue or self._is_closed)
            batch = self._take()
            if not batch:  # another device was faster, or there is no more to come
                continue
            self.statistics.inflight_batches += 1
            try:
                items = [entry.item for entry in batch]
                results = await loop.run_in_executor(self._threads, device, items)
                assert len(results) == len(batch), "a device owes one result an item"
            except Exception as error:
                results = [error] * len(batch)
            finally:
                self.statistics.inflight_batches -= 1
            self.statistics.num_batches += 1
            for entry, result in zip(batch, results, strict=True):
                self._resolve(entry, result)

    def _take(self) -> list[_Entry[ItemT, ResultT]]:
        """The next batch: in order of arrival, as much as the budget holds, one item at least."""
        batch: list[_Entry[ItemT, ResultT]] = []
        spent = 0
        while self._queue and (not batch or spent + self._queue[0].cost <= self.budget):
            entry = self._queue.popleft()
            spent += entry.cost
            batch.append(entry)
        self.statistics.queue_items -= len(batch)
        self.statistics.queue_cost -= spent
        return batch

    def _resolve(self, entry: _Entry[ItemT, ResultT], result: ResultT | Exception) -> None:
        self.statistics.num_items += 1
        self.statistics.num_failed += isinstance(result, Exception)
        entry.result.set_result(result)
        if isinstance(result, Exception) or not self._lingers(entry.item):
            del self._joinable[entry.item]
        else:
            loop = asyncio.get_running_loop()
            loop.call_later(self._linger_s, self._joinable.pop, entry.item, None)
