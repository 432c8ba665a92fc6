"""The adaptive batcher: many callers' items into batches for the devices, results back to their callers.

It knows nothing of tensors: an item has a cost, a device is a function of a list of items. What goes first is
decided in models/schedule.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic

from models.crew import Crew, Device, ItemT, Part, ResultT
from models.failures import DeviceLost, NoDevice, OutOfMemory, QueueFull, TooLate
from models.forecast import Forecast
from models.schedule import DELAYS_S, STRETCH, Entry, Priority, Schedule
from models.statistics import Batch, DeviceStatistics, Pace, Statistics

logger = logging.getLogger(__name__)

CLOSED = "the batcher was closed"
MAX_LOSSES = 2  # devices that may be lost with an item on them before the item is held to be the cause
RECOVERY = 1.05  # by which a budget that memory has cut grows with every batch that fits
VISIT_S = 10.0  # after somebody's call, in which he may come again: batches of bulk work stay small for so long


@dataclass(frozen=True)
class Limits:
    """budget: cost of a batch at most; a dearer item runs alone. max_items: of a batch.

    max_wait_s: for which the first of a batch may be kept waiting for company; 0: a free device never waits.
    max_queue_cost: of what waits, from which on nothing new is let in. linger_s: see `Batcher`.
    """

    budget: int
    max_items: int = sys.maxsize
    max_wait_s: float = 0.0
    max_queue_cost: float = math.inf
    linger_s: float = 1.0


@dataclass(frozen=True)
class Outcome(Generic[ResultT]):
    """What became of an item. device: number of the one that ran it; None if none did.

    batch: with which it ran; waited_s: until that began.
    """

    result: ResultT | Exception
    device: int | None = None
    batch: Batch | None = field(default=None, compare=False)
    waited_s: float = field(default=0.0, compare=False)


@dataclass(eq=False)
class _Work(Generic[ItemT, ResultT]):
    entry: Entry[ItemT]
    outcome: asyncio.Future[Outcome[ResultT]]
    num_losses: int = 0


class Batcher(Generic[ItemT, ResultT]):
    """One queue, drained by every device.

    Work-conserving: a device that is free takes what waits, at once, up to the budget, whoever asked.
    Equal items are computed once: who asks for one that is queued, running or just done gets the same result.
    A device that is lost is set aside, and what it held goes to the others. Where memory is short, a batch is cut
    and the device's budget shrinks, and recovers.

    Args:
        devices, num_callers, shares: see `Crew`.
        cost: of an item, in tokens' worth of arithmetic.
        limits: of batches and of the queue.
        lingers: whether an item's result may be kept for `linger_s` after it is done, so that a caller who
            looked into the cache just before the result was written there still joins.
        on_last_loss: called once no device is left and everyone who waited has been told.
        on_batch: called with every batch that is done, its items, and the longest that one of them had waited.
    """

    def __init__(
        self,
        devices: Sequence[Device[ItemT, ResultT]],
        cost: Callable[[ItemT], int],
        limits: Limits,
        lingers: Callable[[ItemT], bool] = lambda _: False,
        num_callers: int = 1,
        on_last_loss: Callable[[], None] = lambda: None,
        on_batch: Callable[[Batch, Sequence[ItemT], float], None] = lambda *_: None,
        shares: Sequence[Device[ItemT, ResultT]] | None = None,
    ) -> None:
        self.limits = limits
        self._cost = cost
        self._lingers = lingers
        self._on_last_loss = on_last_loss
        self._on_batch = on_batch
        self._schedule: Schedule[ItemT] = Schedule()
        self._works: dict[ItemT, _Work[ItemT, ResultT]] = {}  # what may be joined
        self._statistics = Statistics([DeviceStatistics(limits.budget) for _ in devices])
        self._forecast = Forecast(self._statistics, self._schedule)
        self._paces = [Pace() for _ in devices]
        self._changed = asyncio.Event()  # set when a device that waits has reason to look again
        self._crew = Crew(devices, num_callers, shares)
        self._loops: list[asyncio.Task[None]] = []
        self._visited_until = -math.inf
        self._last_loss = "no device is lost"
        self._is_closed = False

    async def run(
        self,
        items: Sequence[ItemT],
        priority: Priority = "interactive",
        timeout_s: float | None = None,
        is_admitted: bool = False,
    ) -> list[Outcome[ResultT]]:
        """One outcome an item, in order. An item's own failure is its result; it never fails another.

        A caller who leaves (cancelled, or out of time) takes along what nobody else wants and no device has begun.

        Args:
            timeout_s: seconds that the caller waits; None: for ever.
            is_admitted: part of a request that was let in before: it is taken however much waits.
        Raises:
            QueueFull: `max_queue_cost` is reached.
            TooLate: what goes before takes too long for an answer in time.
            NoDevice: none is left.
            TimeoutError: not all is done in time.
        """
        if self._is_closed:
            return [Outcome(RuntimeError(CLOSED)) for _ in items]
        if not self._statistics.live:
            raise NoDevice(self._last_loss)
        if not is_admitted and items and self._schedule.cost >= self.limits.max_queue_cost:
            self._statistics.num_rejected_calls += 1
            raise QueueFull(self._forecast.drain_s())
        if not is_admitted and timeout_s is not None:
            self._check_time(items, priority, timeout_s)
        if not self._loops:
            numbers = range(len(self._statistics.devices))
            callers = [number for number in numbers for _ in range(self._crew.num_callers)]
            self._loops = [asyncio.create_task(self._drain(number)) for number in callers]
        started = asyncio.get_running_loop().time()
        deadline = math.inf if timeout_s is None else started + timeout_s
        works = self._enter_all(items, priority, deadline)
        try:
            async with asyncio.timeout(timeout_s):
                outcomes = await asyncio.gather(*(asyncio.shield(work.outcome) for work in works))
            self._statistics.num_calls += 1
            self._statistics.call_s += asyncio.get_running_loop().time() - started
            return list(outcomes)
        except TimeoutError:
            self._statistics.num_expired_calls += 1
            raise
        finally:
            for work in works:
                self._leave(work)

    @property
    def statistics(self) -> Statistics:
        """As of now."""
        statistics = self._statistics
        statistics.queue_items, statistics.queue_cost = self._schedule.size, self._schedule.cost
        statistics.inflight_batches = sum(device.inflight_batches for device in statistics.devices)
        for device, pace in zip(statistics.devices, self._paces, strict=True):
            device.overdue_s = pace.overdue_s(asyncio.get_running_loop().time())
        return statistics

    async def close(self) -> None:
        """Ends behind the batches that are running, which are answered; what is queued or comes later fails."""
        self._is_closed = True
        for entry in self._schedule.take_all():
            self._resolve(self._works[entry.item], Outcome(RuntimeError(CLOSED)))
        self._changed.set()
        await asyncio.gather(*self._loops)
        self._crew.close()

    def _check_time(self, items: Sequence[ItemT], priority: Priority, timeout_s: float) -> None:
        """Who cannot be answered in time is told at once. What expired while it ran would be computed for nobody.

        Raises:
            TooLate: what goes before takes too long, as far as can be foreseen.
        """
        own = sum(self._cost(item) for item in items if item not in self._works)
        if self._forecast.has_time(own, timeout_s):
            return
        retry_after_s = self._forecast.late_s(own, self._due(priority, own), timeout_s)
        if retry_after_s is not None:
            self._statistics.num_rejected_calls += 1
            raise TooLate(retry_after_s)

    def _due(self, priority: Priority, ahead: int) -> float:
        """When an item is due that is this far into a call, its own cost included."""
        rate = self._forecast.cost_per_s if self._forecast.is_known else 0.0
        now = asyncio.get_running_loop().time()
        return now + DELAYS_S[priority] + (STRETCH * ahead / rate if rate else 0.0)

    def _enter_all(
        self, items: Sequence[ItemT], priority: Priority, deadline: float
    ) -> list[_Work[ItemT, ResultT]]:
        """Each item is due after STRETCH times what the devices need for the call up to there.

        So a small call goes before what a large one has just put in, and after what it put in long ago.
        """
        now = asyncio.get_running_loop().time()
        works: list[_Work[ItemT, ResultT]] = []
        ahead, is_bulk = 0, priority == "bulk"
        if priority == "interactive":
            self._visited_until = now + VISIT_S
        for item in items:
            cost = self._cost(item)
            ahead += cost
            due = self._due(priority, ahead)
            work = self._works.get(item)
            if work is not None:
                self._statistics.num_joined += 1
                self._schedule.join(work.entry, due, is_bulk, deadline)
            else:
                work = _Work(
                    Entry(item, cost, now, due, is_bulk, deadline=deadline),
                    asyncio.get_running_loop().create_future(),
                )
                self._works[item] = work
                self._schedule.put(work.entry)
            works.append(work)
        self._changed.set()
        return works

    def _leave(self, work: _Work[ItemT, ResultT]) -> None:
        if self._schedule.leave(work.entry):
            self._abandon(work)
            self._changed.set()  # what comes after it may go where it had to wait

    def _abandon(self, work: _Work[ItemT, ResultT]) -> None:
        self._statistics.num_abandoned += 1
        work.outcome.cancel()
        del self._works[work.entry.item]

    async def _drain(self, number: int) -> None:
        device = self._statistics.devices[number]
        while not self._is_closed and not device.is_lost:
            full_at = self._waits_for_company_until(device) if self._schedule.size else math.inf
            if self._crew.must_wait(number, device, self._schedule):
                await self._look_again(math.inf)
            elif full_at is not None:
                await self._look_again(full_at)
            else:
                now = asyncio.get_running_loop().time()
                room, part = self._crew.room(device, self._schedule)
                num_beside = 1 if part == "all" else self._crew.num_callers
                ends_at = self._forecast.end_of_batch(device, now, room, num_beside)
                entries = self._schedule.pick(room, self.limits.max_items, now < self._visited_until, ends_at)
                await self._run(number, [self._works[entry.item] for entry in entries], part)

    def _waits_for_company_until(self, device: DeviceStatistics) -> float | None:
        """When the first item of a batch that is not full has waited for long enough; None if that is now."""
        first = self._schedule.first()
        assert first is not None
        if self._schedule.cost >= device.budget or self._schedule.size >= self.limits.max_items:
            return None
        full_at = first.arrived + self.limits.max_wait_s
        return full_at if asyncio.get_running_loop().time() < full_at else None

    async def _look_again(self, at: float) -> None:
        """Returns when something has changed, or at this time."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(None if at == math.inf else at):
                await self._changed.wait()

    async def _run(self, number: int, batch: list[_Work[ItemT, ResultT]], part: Part) -> None:
        device, pace, loop = self._statistics.devices[number], self._paces[number], asyncio.get_running_loop()
        cost = sum(work.entry.cost for work in batch)
        items = [work.entry.item for work in batch]
        is_last = not self._schedule.size  # nothing waited that it had no room for
        began, started = loop.time(), time.perf_counter()
        if not device.inflight_batches:
            pace.start(began)
        device.inflight_batches += 1
        self._forecast.running += cost
        ticket = pace.expect(cost, began, device.cost_per_s)
        results: Sequence[ResultT | Exception]
        try:
            results = await self._crew.compute(number, items, part)
            assert len(results) == len(batch), "a device owes one result an item"
        except DeviceLost as error:
            self._set_aside(number, batch, error)
            return
        except OutOfMemory as error:
            if len(batch) > 1:
                self._cut(number, batch, cost, error)
                return
            if device.inflight_batches > 1:  # the other batch may have had the memory
                batch[0].entry.goes_alone = batch[0].entry.wants_device = True
                self._put_back(batch)
                return
            results = [error.with_traceback(None)]  # whose frames a result would keep until its call is answered
        except Exception as error:
            results = [error] * len(batch)
        else:
            self._statistics.busy_s += loop.time() - pace.since
            pace.add(cost, loop.time(), device.budget, is_last)
            device.cost_per_s, device.is_rated = pace.cost_per_s, pace.is_rated
            device.budget = min(self.limits.budget, math.ceil(device.budget * RECOVERY))
        finally:
            device.inflight_batches -= 1
            self._forecast.running -= cost
            pace.forget(ticket)
            if self._schedule.size:
                self._changed.set()
        device.num_batches += 1
        device.num_items += len(batch)
        self._statistics.num_batches += 1
        done = Batch(number, len(batch), cost, began, time.perf_counter() - started)
        self._on_batch(done, items, max(began - work.entry.arrived for work in batch))
        for work, result in zip(batch, results, strict=True):
            self._resolve(work, Outcome(result, number, done, began - work.entry.arrived))

    def _cut(self, number: int, batch: list[_Work[ItemT, ResultT]], cost: int, error: OutOfMemory) -> None:
        """The batch goes again, in parts: half of what did not fit is the most that is tried next."""
        device = self._statistics.devices[number]
        self._statistics.num_split += 1
        device.budget = max(1, min(device.budget, cost // 2))
        logger.warning(
            "device %d is short of memory (%s); a batch costs up to %d now", number, error, device.budget
        )
        self._put_back(batch)

    def _set_aside(self, number: int, batch: list[_Work[ItemT, ResultT]], error: DeviceLost) -> None:
        """The others go on with what the device held. Where none is left, whoever waits is told."""
        device = self._statistics.devices[number]
        was_last = not device.is_lost and len(self._statistics.live) == 1
        device.is_lost = True
        self._last_loss = f"the last device was lost: {error}"
        logger.critical("device %d is lost: %s; %d are left", number, error, len(self._statistics.live))
        for work in batch:
            work.num_losses += 1
            work.entry.goes_alone = True  # from now on, so that it takes nobody along if it is the cause
        guilty = [work for work in batch if work.num_losses >= MAX_LOSSES and self._statistics.live]
        for work in guilty:
            self._resolve(work, Outcome(error, number))
        self._put_back([work for work in batch if work not in guilty])
        if was_last:
            self._put_back([self._works[entry.item] for entry in self._schedule.take_all()])
            self._on_last_loss()

    def _put_back(self, batch: list[_Work[ItemT, ResultT]]) -> None:
        """Into the queue, if anybody still wants it and anything still takes from there."""
        for work in batch:
            if not work.entry.num_callers:
                self._abandon(work)
            elif not self._statistics.live:  # the calls that wait for it fail as a whole
                del self._works[work.entry.item]
                work.outcome.set_exception(NoDevice(self._last_loss))
            elif self._is_closed:
                self._resolve(work, Outcome(RuntimeError(CLOSED)))
            else:
                self._schedule.put(work.entry)
        self._changed.set()

    def _resolve(self, work: _Work[ItemT, ResultT], outcome: Outcome[ResultT]) -> None:
        is_failure = isinstance(outcome.result, Exception)
        self._statistics.num_items += 1
        self._statistics.num_failed += is_failure
        work.outcome.set_result(outcome)
        item = work.entry.item
        if is_failure or not self._lingers(item):
            del self._works[item]
        else:
            asyncio.get_running_loop().call_later(self.limits.linger_s, self._works.pop, item, None)
