"""The batcher, with devices that double numbers. An item's cost is the item itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from models.batcher import Batcher, Device

# For what must happen; nothing waits as long unless a test fails
DEADLINE_S = 20

Numbers = Batcher[int, int]


def double(items: Sequence[int]) -> list[int | Exception]:
    return [2 * item for item in items]


class Recorder:
    """A device that doubles, and keeps the batches it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(items))
        return double(items)


class Held(Recorder):
    """A device that doubles each batch only when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self._started = threading.Semaphore(0)
        self._allowed = threading.Semaphore(0)

    def __call__(self, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(items))
        self._started.release()
        assert self._allowed.acquire(timeout=DEADLINE_S)
        return double(items)

    async def started(self) -> None:
        """Waits until the device holds a batch that was not waited for yet."""
        assert await asyncio.to_thread(self._started.acquire, timeout=DEADLINE_S)

    def let_go(self, num_batches: int = 1) -> None:
        self._allowed.release(num_batches)


class Clock:
    """The event loop's time, standing still until it is moved on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now)

    async def move_on(self, seconds: float) -> None:
        self.now += seconds
        await settle()


async def settle() -> None:
    """Lets every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


@asynccontextmanager
async def running(
    *devices: Device[int, int],
    budget: int = 10,
    lingers: Callable[[int], bool] = lambda _: False,
    linger_s: float = 1.0,
) -> AsyncIterator[Numbers]:
    batcher: Numbers = Batcher(devices, lambda item: item, budget, lingers, linger_s)
    async with asyncio.timeout(DEADLINE_S):
        yield batcher
    await batcher.close()


async def test_results_come_back_in_order_to_each_of_many_callers() -> None:
    device = Recorder()
    async with running(device, device, budget=20) as batcher:
        asked = [[(7 * caller + 3 * i) % 50 + 1 for i in range(20)] for caller in range(30)]
        answers = list(await asyncio.gather(*(batcher.run(items) for items in asked)))
    assert answers == [double(items) for items in asked]


async def test_an_empty_request_is_answered() -> None:
    async with running(double) as batcher:
        assert await batcher.run([]) == []


async def test_batches_respect_the_budget_and_a_dearer_item_runs_alone() -> None:
    device = Held()
    async with running(device, budget=10) as batcher:
        asking = asyncio.create_task(batcher.run([10, 4, 5, 2, 8, 12, 1, 9, 3]))
        await device.started()
        device.let_go(100)
        assert await asking == double([10, 4, 5, 2, 8, 12, 1, 9, 3])
    assert device.batches == [[10], [4, 5], [2, 8], [12], [1, 9], [3]]


async def test_requests_of_different_callers_share_a_batch() -> None:
    device = Held()
    async with running(device, budget=10) as batcher:
        callers = [asyncio.create_task(batcher.run([9]))]
        await device.started()
        callers += [asyncio.create_task(batcher.run([item])) for item in (1, 2, 3)]
        await settle()
        device.let_go(2)
        assert await asyncio.gather(*callers) == [[18], [2], [4], [6]]
    assert device.batches == [[9], [1, 2, 3]]


async def test_an_idle_device_takes_a_lone_item_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Held()
    async with running(device, budget=1_000_000) as batcher:
        Clock(monkeypatch)  # with time standing still, whoever waits for company waits for ever
        asking = asyncio.create_task(batcher.run([1]))
        await device.started()
        assert device.batches == [[1]]
        device.let_go()
        assert await asking == [2]


async def test_a_second_device_does_not_wait_for_a_busy_first() -> None:
    one, other = Held(), Held()
    async with running(one, other, budget=1_000_000) as batcher:
        first = asyncio.create_task(batcher.run([1]))
        await asyncio.wait(
            [asyncio.create_task(device.started()) for device in (one, other)], return_when=asyncio.FIRST_COMPLETED
        )
        second = asyncio.create_task(batcher.run([2]))
        for device in (one, other):
            device.let_go()
        assert await first == [2]
        assert await second == [4]
    assert sorted(one.batches + other.batches) == [[1], [2]]


async def test_devices_drain_one_queue_at_the_same_time() -> None:
    together = threading.Barrier(3)

    def meet(items: Sequence[int]) -> list[int | Exception]:
        together.wait(timeout=DEADLINE_S)  # breaks, and fails the item, unless three batches run at once
        return double(items)

    async with running(meet, meet, meet, budget=1) as batcher:
        assert await batcher.run([1, 2, 3, 4, 5, 6]) == double([1, 2, 3, 4, 5, 6])


async def test_a_device_runs_one_batch_at_a_time() -> None:
    device = Held()
    async with running(device, budget=1) as batcher:
        asking = asyncio.create_task(batcher.run([1, 2]))
        await device.started()
        await settle()
        assert batcher.statistics.inflight_batches == 1
        assert device.batches == [[1]]
        device.let_go(2)
        await asking


async def test_an_items_failure_is_its_own() -> None:
    def odd(items: Sequence[int]) -> list[int | Exception]:
        return [ValueError(f"{item} is odd") if item % 2 else 2 * item for item in items]

    async with running(odd) as batcher:
        found = await batcher.run([2, 3, 4])
    assert found[0] == 4
    assert found[2] == 8
    assert isinstance(found[1], ValueError)
    assert str(found[1]) == "3 is odd"


async def test_a_device_that_raises_fails_its_batch_alone_and_goes_on() -> None:
    def fragile(items: Sequence[int]) -> list[int | Exception]:
        if 13 in items:
            raise MemoryError("13")
        return double(items)

    async with running(fragile, budget=13) as batcher:
        found = await batcher.run([5, 6, 13, 7, 4])
        assert isinstance(found[2], MemoryError)
        assert [found[i] for i in (0, 1, 3, 4)] == [10, 12, 14, 8]
        assert await batcher.run([8]) == [16]
        assert batcher.statistics.inflight_batches == 0


async def test_a_device_that_forgets_an_item_fails_its_batch_and_goes_on() -> None:
    def forgetful(items: Sequence[int]) -> list[int | Exception]:
        return double(items)[: 1 if 13 in items else None]

    async with running(forgetful, budget=100) as batcher:
        assert all(isinstance(result, AssertionError) for result in await batcher.run([13, 1]))
        assert await batcher.run([1, 2]) == [2, 4]


async def test_equal_items_of_one_request_are_computed_once() -> None:
    device = Recorder()
    async with running(device) as batcher:
        assert await batcher.run([3, 3, 1, 3]) == [6, 6, 2, 6]
        assert batcher.statistics.num_joined == 2
    assert device.batches == [[3, 1]]


async def test_who_asks_for_what_is_queued_or_running_joins() -> None:
    device = Held()
    async with running(device) as batcher:
        first = asyncio.create_task(batcher.run([9]))
        await device.started()
        others = [asyncio.create_task(batcher.run(items)) for items in ([9], [4], [4, 9])]
        await settle()
        assert batcher.statistics.num_joined == 3
        device.let_go(2)
        assert await asyncio.gather(first, *others) == [[18], [18], [8], [8, 18]]
    assert device.batches == [[9], [4]]


async def test_who_asks_after_the_result_is_there_is_computed_anew() -> None:
    device = Recorder()
    async with running(device) as batcher:
        await batcher.run([3])
        await batcher.run([3])
    assert device.batches == [[3], [3]]


async def test_a_lingering_result_is_joined_and_later_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Recorder()
    async with running(device, lingers=lambda item: item < 5, linger_s=1.0) as batcher:
        clock = Clock(monkeypatch)
        await batcher.run([3, 7])
        assert await batcher.run([3]) == [6]
        await clock.move_on(0.9)
        assert await batcher.run([3]) == [6]
        assert device.batches == [[3, 7]]
        assert batcher.statistics.num_joined == 2
        await batcher.run([7])  # 7 does not linger
        assert device.batches == [[3, 7], [7]]
        await clock.move_on(0.2)
        assert await batcher.run([3]) == [6]
        assert device.batches == [[3, 7], [7], [3]]


async def test_errors_never_linger() -> None:
    device = Recorder()

    def fails_first(items: Sequence[int]) -> list[int | Exception]:
        results = device(items)
        return [OSError("once")] * len(results) if len(device.batches) == 1 else results

    async with running(fails_first, lingers=lambda _: True, linger_s=1e6) as batcher:
        (first,) = await batcher.run([3])
        assert isinstance(first, OSError)
        assert await batcher.run([3]) == [6]


@pytest.mark.parametrize("leaver", [0, 1])
async def test_a_caller_who_leaves_takes_nothing_from_who_asks_the_same(leaver: int) -> None:
    device = Held()
    async with running(device) as batcher:
        busy = asyncio.create_task(batcher.run([9]))
        await device.started()
        callers = []
        for _ in range(2):
            callers.append(asyncio.create_task(batcher.run([4])))
            await settle()
        callers[leaver].cancel()
        with pytest.raises(asyncio.CancelledError):
            await callers[leaver]
        device.let_go(2)
        assert await busy == [18]
        assert await callers[1 - leaver] == [8]


async def test_closing_fails_what_is_queued() -> None:
    device = Held()
    async with running(device) as batcher:
        busy = asyncio.create_task(batcher.run([9]))
        await device.started()
        queued = asyncio.create_task(batcher.run([4, 5]))
        await settle()
        device.let_go()
        await batcher.close()
        found = await queued
        assert [str(result) for result in found] == ["the batcher was closed"] * 2
        busy.cancel()
    assert device.batches == [[9]]


async def test_closing_answers_what_is_running() -> None:
    device = Held()
    async with running(device) as batcher:
        asking = asyncio.create_task(batcher.run([9]))
        await device.started()
        device.let_go()
        await batcher.close()
        await settle()
        assert asking.done()


async def test_a_closed_batcher_refuses() -> None:
    async with running(double) as batcher:
        await batcher.run([1])
        await batcher.close()
        asking = asyncio.create_task(batcher.run([2]))
        await settle()
        assert asking.done()


async def test_a_batcher_that_never_ran_closes() -> None:
    async with running(double):
        pass


async def test_statistics_count_what_waits_runs_and_is_done() -> None:
    device = Held()

    def picky(items: Sequence[int]) -> list[int | Exception]:
        return [ValueError() if result == 8 else result for result in device(items)]

    async with running(picky) as batcher:
        first = asyncio.create_task(batcher.run([9]))
        await device.started()
        second = asyncio.create_task(batcher.run([4, 5, 6, 4]))
        await settle()
        s = batcher.statistics
        assert (s.inflight_batches, s.queue_items, s.queue_cost) == (1, 3, 15)
        assert (s.num_batches, s.num_items, s.num_joined, s.num_failed) == (0, 0, 1, 0)
        device.let_go(3)
        await asyncio.gather(first, second)
        assert (s.inflight_batches, s.queue_items, s.queue_cost) == (0, 0, 0)
        assert (s.num_batches, s.num_items, s.num_joined, s.num_failed) == (3, 4, 1, 1)


async def test_nothing_waits_in_a_closed_batcher() -> None:
    device = Held()
    async with running(device) as batcher:
        first = asyncio.create_task(batcher.run([9]))
        await device.started()
        second = asyncio.create_task(batcher.run([4]))
        await settle()
        device.let_go()
        await batcher.close()
        await second
        first.cancel()
        assert (batcher.statistics.queue_items, batcher.statistics.queue_cost) == (0, 0)
