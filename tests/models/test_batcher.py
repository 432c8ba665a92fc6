"""The batcher on devices in threads: batches, who shares them, what is answered, and what is counted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from models.batcher import Outcome
from tests.models.devices import DEADLINE_S, Held, Recorder, double, results, running, settle
from tests.models.simulation import Worker, ask, asked, simulated, until, working


async def test_results_come_back_in_order_to_each_of_many_callers() -> None:
    device = Recorder()
    async with running(device, device, budget=20) as batcher:
        asked = [[(7 * caller + 3 * i) % 50 + 1 for i in range(20)] for caller in range(30)]
        answers = list(await asyncio.gather(*(results(batcher, items) for items in asked)))
    assert answers == [double(items) for items in asked]


async def test_an_empty_request_is_answered() -> None:
    async with running(double) as batcher:
        assert await results(batcher, []) == []


async def test_batches_respect_the_budget_and_a_dearer_item_runs_alone() -> None:
    device = Held()
    async with running(device, budget=10) as batcher:
        asking = asyncio.create_task(results(batcher, [10, 4, 5, 2, 8, 12, 1, 9, 3]))
        await device.started()
        device.let_go(100)
        assert await asking == double([10, 4, 5, 2, 8, 12, 1, 9, 3])
    assert device.batches == [[10], [4, 5], [2, 8], [12], [1, 9], [3]]


async def test_requests_of_different_callers_share_a_batch() -> None:
    device = Held()
    async with running(device, budget=10) as batcher:
        callers = [asyncio.create_task(results(batcher, [9]))]
        await device.started()
        callers += [asyncio.create_task(results(batcher, [item])) for item in (1, 2, 3)]
        await settle()
        device.let_go(2)
        assert await asyncio.gather(*callers) == [[18], [2], [4], [6]]
    assert device.batches == [[9], [1, 2, 3]]


@simulated
async def test_an_idle_device_takes_a_lone_item_at_once() -> None:
    worker = Worker()
    async with working(worker, budget=1_000_000) as batcher:
        await until(3)
        assert await ask(batcher, 1) == [2]
    assert worker.history[0].began == 3


async def test_a_second_device_does_not_wait_for_a_busy_first() -> None:
    one, other = Held(), Held()
    async with running(one, other, budget=1_000_000) as batcher:
        first = asyncio.create_task(results(batcher, [1]))
        await asyncio.wait(
            [asyncio.create_task(device.started()) for device in (one, other)], return_when=asyncio.FIRST_COMPLETED
        )
        second = asyncio.create_task(results(batcher, [2]))
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
        assert await results(batcher, [1, 2, 3, 4, 5, 6]) == double([1, 2, 3, 4, 5, 6])


async def test_a_device_runs_one_batch_at_a_time() -> None:
    device = Held()
    async with running(device, budget=1) as batcher:
        asking = asyncio.create_task(results(batcher, [1, 2]))
        await device.started()
        await settle()
        assert batcher.statistics.inflight_batches == 1
        assert device.batches == [[1]]
        device.let_go(2)
        await asking


@simulated
async def test_a_device_with_several_callers_has_several_batches_at_a_time() -> None:
    worker = Worker()
    async with working(worker, budget=4, num_callers=2) as batcher:
        assert await ask(batcher, 4, 3, 2, 1) == [8, 6, 4, 2]
        assert batcher.statistics.devices[0].num_batches == 3
    assert [(batch.items, batch.began) for batch in worker.history] == [([4], 0), ([3], 0), ([2, 1], 3)]


@simulated
async def test_what_waits_alone_has_all_of_a_device_that_divides() -> None:
    worker = Worker()
    async with working(worker, num_callers=2, divides=True) as batcher:
        assert await ask(batcher, 4, 3) == [8, 6]
        assert await ask(batcher, 30) == [60]
    assert [(batch.items, batch.is_share) for batch in worker.history] == [([4, 3], False), ([30], False)]


@simulated
async def test_a_device_that_divides_computes_side_by_side_while_more_waits_than_a_batch_holds() -> None:
    worker = Worker()
    async with working(worker, num_callers=2, divides=True) as batcher:
        assert await ask(batcher, 3, 2, 1, 4, 5) == [6, 4, 2, 8, 10]
    assert [(batch.items, batch.began, batch.ended) for batch in worker.history] == [
        ([3, 2], 0, 10),
        ([1, 4], 0, 10),
        ([5], 10, 20),
    ]
    assert all(batch.is_share for batch in worker.history)


@simulated
async def test_who_comes_while_a_batch_has_all_of_a_device_waits_for_its_end() -> None:
    worker = Worker()
    async with working(worker, num_callers=2, divides=True) as batcher:
        first = await asked(batcher, 8)
        await until(1)
        assert await ask(batcher, 6, 5) == [12, 10]
        assert await first == [16]
    assert [(batch.items, batch.began) for batch in worker.history] == [([8], 0), ([6], 8), ([5], 8)]


@simulated
async def test_the_last_shares_are_small_so_that_they_end_together() -> None:
    worker = Worker()
    async with working(worker, budget=100, num_callers=2, divides=True) as batcher:
        await ask(batcher, *range(2, 17))  # 135 in all
    assert [len(batch.items) for batch in worker.history] == [8, 4, 1, 1, 1]
    ends = sorted(batch.ended for batch in worker.history)
    assert ends[-1] - ends[-2] < 2 * 16  # of the dearest, on a share


@simulated
async def test_a_batch_has_so_many_items_at_most() -> None:
    worker = Worker()
    async with working(worker, max_items=2) as batcher:
        assert await ask(batcher, 1, 2, 3, 4, 5) == [2, 4, 6, 8, 10]
    assert worker.batches == [[1, 2], [3, 4], [5]]


@simulated
async def test_an_outcome_tells_the_device_that_ran_it() -> None:
    slow, fast = Worker(rate=1), Worker(rate=10)
    async with working(slow, fast, budget=1) as batcher:
        assert await batcher.run([10, 20, 10]) == [Outcome(20, 0), Outcome(40, 1), Outcome(20, 0)]


async def test_an_items_failure_is_its_own() -> None:
    def odd(items: Sequence[int]) -> list[int | Exception]:
        return [ValueError(f"{item} is odd") if item % 2 else 2 * item for item in items]

    async with running(odd) as batcher:
        found = await results(batcher, [2, 3, 4])
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
        found = await results(batcher, [5, 6, 13, 7, 4])
        assert isinstance(found[2], MemoryError)
        assert [found[i] for i in (0, 1, 3, 4)] == [10, 12, 14, 8]
        assert await results(batcher, [8]) == [16]
        assert batcher.statistics.inflight_batches == 0


async def test_a_device_that_forgets_an_item_fails_its_batch_and_goes_on() -> None:
    def forgetful(items: Sequence[int]) -> list[int | Exception]:
        return double(items)[: 1 if 13 in items else None]

    async with running(forgetful, budget=100) as batcher:
        assert all(isinstance(result, AssertionError) for result in await results(batcher, [13, 1]))
        assert await results(batcher, [1, 2]) == [2, 4]


async def test_equal_items_of_one_request_are_computed_once() -> None:
    device = Recorder()
    async with running(device) as batcher:
        assert await results(batcher, [3, 3, 1, 3]) == [6, 6, 2, 6]
        assert batcher.statistics.num_joined == 2
    assert device.batches == [[3, 1]]


async def test_who_asks_for_what_is_queued_or_running_joins() -> None:
    device = Held()
    async with running(device) as batcher:
        first = asyncio.create_task(results(batcher, [9]))
        await device.started()
        others = [asyncio.create_task(results(batcher, items)) for items in ([9], [4], [4, 9])]
        await settle()
        assert batcher.statistics.num_joined == 3
        device.let_go(2)
        assert await asyncio.gather(first, *others) == [[18], [18], [8], [8, 18]]
    assert device.batches == [[9], [4]]


@simulated
async def test_a_lingering_result_is_joined_and_later_forgotten() -> None:
    worker = Worker()
    async with working(worker, lingers=lambda item: item < 5, linger_s=1.0) as batcher:
        assert await ask(batcher, 3, 7) == [6, 14]
        assert await ask(batcher, 3) == [6]
        await until(10.9)
        assert await batcher.run([3]) == [Outcome(6, 0)]
        assert worker.batches == [[3, 7]]
        assert batcher.statistics.num_joined == 2
        await until(11.1)
        assert await ask(batcher, 3) == [6]
        assert worker.batches == [[3, 7], [3]]


@simulated
async def test_only_what_may_linger_does() -> None:
    worker = Worker()
    async with working(worker, lingers=lambda item: item < 5) as batcher:
        await ask(batcher, 3, 7)
        await ask(batcher, 3, 7)
    assert worker.batches == [[3, 7], [7]]


@simulated
async def test_nothing_lingers_by_default() -> None:
    worker = Worker()
    async with working(worker) as batcher:
        await ask(batcher, 3)
        await ask(batcher, 3)
    assert worker.batches == [[3], [3]]


async def test_errors_never_linger() -> None:
    device = Recorder()

    def fails_first(items: Sequence[int]) -> list[int | Exception]:
        results = device(items)
        return [OSError("once")] * len(results) if len(device.batches) == 1 else results

    async with running(fails_first, lingers=lambda _: True, linger_s=1e6) as batcher:
        (first,) = await results(batcher, [3])
        assert isinstance(first, OSError)
        assert await results(batcher, [3]) == [6]


async def test_closing_fails_what_is_queued() -> None:
    device = Held()
    async with running(device) as batcher:
        busy = asyncio.create_task(results(batcher, [9]))
        await device.started()
        queued = asyncio.create_task(results(batcher, [4, 5]))
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
        asking = asyncio.create_task(results(batcher, [9]))
        await device.started()
        device.let_go()
        await batcher.close()
        await settle()
        assert asking.done()


async def test_a_closed_batcher_refuses() -> None:
    async with running(double) as batcher:
        await results(batcher, [1])
        await batcher.close()
        asking = asyncio.create_task(results(batcher, [2]))
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
        first = asyncio.create_task(results(batcher, [9]))
        await device.started()
        second = asyncio.create_task(results(batcher, [4, 5, 6, 4]))
        await settle()
        s = batcher.statistics
        assert (s.inflight_batches, s.queue_items, s.queue_cost) == (1, 3, 15)
        assert (s.num_batches, s.num_items, s.num_joined, s.num_failed) == (0, 0, 1, 0)
        device.let_go(3)
        await asyncio.gather(first, second)
        s = batcher.statistics
        assert (s.inflight_batches, s.queue_items, s.queue_cost) == (0, 0, 0)
        assert (s.num_batches, s.num_items, s.num_joined, s.num_failed) == (3, 4, 1, 1)


async def test_nothing_waits_in_a_closed_batcher() -> None:
    device = Held()
    async with running(device) as batcher:
        first = asyncio.create_task(results(batcher, [9]))
        await device.started()
        second = asyncio.create_task(results(batcher, [4]))
        await settle()
        device.let_go()
        await batcher.close()
        await second
        first.cancel()
        assert (batcher.statistics.queue_items, batcher.statistics.queue_cost) == (0, 0)


@simulated
async def test_each_device_is_counted_for_itself() -> None:
    slow, fast = Worker(rate=1), Worker(rate=4)
    async with working(slow, fast, budget=8) as batcher:
        asking = await asked(batcher, 8, 7, 1, 4)
        await until(2.5)
        one, other = batcher.statistics.devices
        assert (one.num_batches, one.num_items, one.inflight_batches, one.cost_per_s) == (0, 0, 1, 0)
        assert (other.num_batches, other.num_items, other.inflight_batches, other.cost_per_s) == (1, 2, 1, 4)
        assert batcher.statistics.inflight_batches == 2
        await asking
        one, other = batcher.statistics.devices
        assert (one.num_batches, one.num_items, one.inflight_batches, one.cost_per_s) == (1, 1, 0, 1)
        assert (other.num_batches, other.num_items, other.inflight_batches, other.cost_per_s) == (2, 3, 0, 4)
        assert [(device.budget, device.is_lost) for device in (one, other)] == [(8, False)] * 2
