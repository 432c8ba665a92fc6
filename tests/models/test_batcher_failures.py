"""Devices that are short of memory or lost, and the end of a batcher. A worker does 1 a second."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from models.batcher import MAX_LOSSES, Outcome
from models.failures import DeviceLost, NoDevice, OutOfMemory
from tests.models.devices import Numbers
from tests.models.simulation import (
    Answer,
    Worker,
    ask,
    asked,
    lost,
    lost_with,
    memory_for,
    now,
    simulated,
    until,
    working,
)


@simulated
async def test_a_batch_that_memory_does_not_hold_is_cut_in_halves() -> None:
    worker = Worker(trouble=memory_for(9))
    async with working(worker, budget=16) as batcher:
        assert await ask(batcher, 1, 2, 3, 4, 6) == [2, 4, 6, 8, 12]
        assert batcher.statistics.num_split == 1
        assert batcher.statistics.num_failed == 0
        assert batcher.statistics.num_items == 5
    assert [sorted(batch) for batch in worker.batches] == [[1, 2, 3, 4, 6], [1, 2, 3], [4], [6]]


@simulated
async def test_a_batch_is_cut_until_it_fits() -> None:
    worker = Worker(trouble=memory_for(2))
    async with working(worker, budget=16) as batcher:
        assert await batcher.run([1, 2]) == [Outcome(2, 0), Outcome(4, 0)]
        assert [batch.items for batch in worker.history if batch.is_good] == [[1], [2]]
        assert batcher.statistics.num_split == 1
        assert await ask(batcher, 2, 1) == [4, 2]


@simulated
async def test_a_single_item_that_memory_does_not_hold_fails_alone() -> None:
    worker = Worker(trouble=memory_for(5))
    async with working(worker, budget=100) as batcher:
        one, two, six, four = await ask(batcher, 1, 2, 6, 4)
        assert [one, two, four] == [2, 4, 8]
        assert isinstance(six, OutOfMemory)
        assert batcher.statistics.num_failed == 1
        assert sum(batch.items == [6] for batch in worker.history) == 1
        assert batcher.statistics.inflight_batches == 0


@simulated
async def test_memory_for_nothing_fails_every_item_and_ends() -> None:
    worker = Worker(trouble=memory_for(0))
    async with working(worker, budget=1000) as batcher:
        found = await ask(batcher, *range(1, 41))
        assert all(isinstance(result, OutOfMemory) for result in found)
        assert batcher.statistics.devices[0].budget == 1
        assert len(worker.batches) <= 40 + 10  # one an item, and a halving of 820 down to 1


@simulated
async def test_a_budget_that_memory_has_cut_recovers_to_its_limit_and_no_further() -> None:
    worker = Worker(trouble=memory_for(9))
    async with working(worker, budget=16) as batcher:
        await ask(batcher, 7, 8)
        assert batcher.statistics.devices[0].budget < 16
        worker.trouble = lambda _: None
        budgets = []
        for item in range(1, 41):
            await ask(batcher, item)
            budgets.append(batcher.statistics.devices[0].budget)
        assert budgets == sorted(budgets)
        assert budgets[-1] == 16
        await ask(batcher, 2, 3, 11)
        assert worker.batches[-1] == [2, 3, 11]


@simulated
async def test_an_older_larger_batch_that_does_not_fit_gives_no_budget_back() -> None:
    worker = Worker(trouble=memory_for(0))
    async with working(worker, budget=16, num_callers=2) as batcher:
        asking = [asyncio.create_task(ask(batcher, *items)) for items in ((1, 2, 4, 9), (3, 5))]
        await until(9)
        assert worker.batches[:2] == [[1, 2, 4, 9], [3, 5]]
        assert batcher.statistics.devices[0].budget == 4
        await until(16.5)
        assert worker.history[0].ended == 16
        assert batcher.statistics.devices[0].budget == 4
        await asyncio.gather(*asking)


@simulated
async def test_an_item_alone_has_a_second_chance_where_another_batch_had_the_memory() -> None:
    short_once = [OutOfMemory("beside another")]

    def trouble(items: Sequence[int]) -> None:
        if items == [20] and short_once:
            raise short_once.pop()

    async with working(Worker(trouble=trouble), budget=10, num_callers=2) as batcher:
        other = await asked(batcher, 30)
        assert await ask(batcher, 20) == [40]
        assert await other == [60]
        assert batcher.statistics.devices[0].budget == 10


@simulated
async def test_the_second_chance_is_on_a_device_that_does_nothing_else() -> None:
    worker = Worker()

    def trouble(items: Sequence[int]) -> None:
        is_beside = any(batch.began < now() < batch.ended and batch.items != items for batch in worker.history)
        if items == [20] and is_beside:
            raise OutOfMemory("beside another")

    worker.trouble = trouble
    async with working(worker, budget=10, num_callers=2) as batcher:
        others = [await asked(batcher, 30)]
        mine = await asked(batcher, 20)
        await until(5)
        others += [await asked(batcher, item) for item in (7, 8, 9)]
        assert await mine == [40]
        assert [await other for other in others] == [[60], [14], [16], [18]]
        assert batcher.statistics.num_failed == 0
    assert [(batch.items, batch.began) for batch in worker.history][:3] == [([30], 0), ([20], 0), ([20], 30)]
    assert all(batch.began >= 50 for batch in worker.history[3:])


@simulated
async def test_nobody_waits_for_a_second_chance_that_nobody_wants_any_more() -> None:
    def trouble(items: Sequence[int]) -> None:
        if items == [20]:
            raise OutOfMemory("beside another")

    worker = Worker(trouble=trouble)
    async with working(worker, budget=10, num_callers=2) as batcher:
        other, mine = await asked(batcher, 30), await asked(batcher, 20)
        await until(21)
        assert worker.history[1].error is not None
        next_one = await asked(batcher, 7)
        await until(22)
        assert len(worker.history) == 2
        mine.cancel()
        assert await next_one == [14]
        assert now() == 29
        assert await other == [60]


@simulated
async def test_what_lost_a_device_goes_alone_and_takes_nobody_along() -> None:
    workers = [Worker(trouble=lost_with(5)) for _ in range(3)]
    async with working(*workers, budget=20) as batcher:
        one, five, two = [outcome.result for outcome in await batcher.run([1, 5, 2])]
        assert (one, two) == (2, 4)
        assert isinstance(five, DeviceLost)
        assert sum(device.is_lost for device in batcher.statistics.devices) == MAX_LOSSES


@simulated
async def test_memory_is_each_devices_own() -> None:
    small, large = Worker(trouble=memory_for(3)), Worker()
    async with working(small, large, budget=8) as batcher:
        assert await ask(batcher, 1, 3, 2, 8) == [2, 6, 4, 16]
        one, other = batcher.statistics.devices
        assert one.budget < 8
        assert other.budget == 8


@simulated
async def test_what_memory_did_not_hold_goes_to_a_device_that_is_free() -> None:
    small, other = Worker(trouble=memory_for(5)), Worker()
    async with working(small, other, budget=8) as batcher:
        assert await ask(batcher, 5, 3) == [10, 6]
    began = [(batch.items, batch.began) for worker in (small, other) for batch in worker.history]
    assert sorted(began) == [([3], 8), ([5], 8), ([5, 3], 0)]


@simulated
async def test_what_memory_did_not_hold_goes_to_another_caller_that_is_free() -> None:
    worker = Worker(trouble=memory_for(5))
    async with working(worker, budget=8, num_callers=2) as batcher:
        assert await ask(batcher, 5, 3) == [10, 6]
    assert sorted((batch.items, batch.began) for batch in worker.history) == [([3], 8), ([5], 8), ([5, 3], 0)]


@simulated
async def test_what_nobody_wants_any_more_is_not_tried_in_parts() -> None:
    worker = Worker(trouble=memory_for(9))
    async with working(worker, budget=16) as batcher:
        leaving, staying = asyncio.create_task(ask(batcher, 7, 5)), asyncio.create_task(ask(batcher, 4))
        await until(1)
        leaving.cancel()
        assert await staying == [8]
        assert batcher.statistics.num_abandoned == 2
        assert worker.batches == [[7, 5, 4], [4]]
        assert await ask(batcher, 7) == [14]


@simulated
async def test_a_lost_devices_batch_goes_to_the_others_and_nothing_more_to_it() -> None:
    bad, good = Worker(trouble=lost), Worker()
    async with working(bad, good, budget=4) as batcher:
        asking = asyncio.create_task(batcher.run([3, 4, 2, 1]))
        await until(3.5)
        assert [device.is_lost for device in batcher.statistics.devices] == [True, False]
        assert batcher.statistics.inflight_batches == 1
        assert await asking == [Outcome(6, 1), Outcome(8, 1), Outcome(4, 1), Outcome(2, 1)]
        assert await ask(batcher, 7, 8, 9) == [14, 16, 18]
    assert bad.batches == [[3]]
    assert sorted(good.batches) == [[2, 1], [3], [4], [7], [8], [9]]


@simulated
async def test_an_idle_device_takes_over_at_once() -> None:
    bad, good = Worker(trouble=lost), Worker()
    async with working(bad, good) as batcher:
        assert await batcher.run([3]) == [Outcome(6, 1)]
    assert [(batch.items, batch.began) for batch in good.history] == [([3], 3)]


@simulated
async def test_an_item_that_loses_devices_fails_alone() -> None:
    workers = [Worker(trouble=lost_with(5)) for _ in range(MAX_LOSSES + 1)]
    async with working(*workers, budget=3) as batcher:
        six, five, four = await batcher.run([6, 5, 4])
        assert (six.result, four.result) == (12, 8)
        assert isinstance(five.result, DeviceLost)
        assert five.device is not None
        assert [5] in workers[five.device].batches
        assert sum(device.is_lost for device in batcher.statistics.devices) == MAX_LOSSES
        assert await ask(batcher, 7) == [14]


@simulated
async def test_who_is_in_a_batch_with_such_an_item_once_is_not_held_to_be_the_cause() -> None:
    workers = [Worker(trouble=lost_with(5)), Worker()]
    async with working(*workers) as batcher:
        assert await ask(batcher, 1, 5, 2) == [2, 10, 4]
        assert batcher.statistics.num_failed == 0


async def refused(asking: Answer) -> str:
    with pytest.raises(NoDevice) as caught:
        await asking
    return str(caught.value)


@simulated
async def test_with_the_last_device_everyone_is_told_and_nobody_is_let_in() -> None:
    told_at: list[float] = []
    worker = Worker(trouble=lost)
    async with working(worker, on_last_loss=lambda: told_at.append(now())) as batcher:
        running = await asked(batcher, 10)
        both = await asked(batcher, 9, 10)
        queued = await asked(batcher, 8, priority="bulk")
        await until(1)
        assert told_at == []
        for asking in (running, both, queued):
            assert await refused(asking) == "the last device was lost: on [10]"
        assert now() == 10
        assert told_at == [10]
        assert (batcher.statistics.queue_items, batcher.statistics.inflight_batches) == (0, 0)
        with pytest.raises(NoDevice):
            await ask(batcher, 10)
        with pytest.raises(NoDevice):
            await ask(batcher, 1, is_admitted=True)
        assert now() == 10
    assert worker.batches == [[10]]
    assert told_at == [10]


@simulated
async def test_a_device_that_is_lost_while_another_lives_is_not_the_last() -> None:
    told: list[float] = []
    bad, good = Worker(trouble=lost), Worker()
    async with working(bad, good, on_last_loss=lambda: told.append(now())) as batcher:
        assert await ask(batcher, 3) == [6]
        assert told == []
        good.trouble = lost
        asking = await asked(batcher, 4)
        await refused(asking)
        assert told == [10]


@pytest.mark.parametrize("costs", [(4, 4), (4, 6)])
@simulated
async def test_the_last_loss_is_told_once_however_many_callers_the_device_has(costs: tuple[int, int]) -> None:
    told: list[float] = []
    one, other = costs
    worker = Worker(trouble=lost)
    async with working(worker, budget=1, num_callers=2, on_last_loss=lambda: told.append(now())) as batcher:
        asking = [await asked(batcher, item) for item in (one, other + 100, 7)]
        for task in asking:
            await refused(task)
    assert told == [one]
    assert worker.batches == [[one], [other + 100]]


@simulated
async def test_a_batch_that_a_lost_device_still_gives_is_answered() -> None:
    worker = Worker(trouble=lost_with(4))
    async with working(worker, budget=1, num_callers=2) as batcher:
        first, second = [await asked(batcher, item) for item in (4, 6)]
        await refused(first)
        assert await second == [12]
    assert worker.batches == [[4], [6]]


@simulated
async def test_both_batches_of_a_lost_device_go_to_the_others() -> None:
    bad, good = Worker(trouble=lost), Worker()
    async with working(bad, good, budget=1, num_callers=2) as batcher:
        assert await ask(batcher, 4, 6, 20, 21, 1) == [8, 12, 40, 42, 2]
        assert batcher.statistics.num_failed == 0
    assert bad.batches == [[4], [6]]


@simulated
async def test_short_memory_on_a_device_that_is_then_lost_leaves_nobody_waiting() -> None:
    """Two batches run; the first loses the only device, the second then finds no memory."""

    def trouble(items: Sequence[int]) -> None:
        raise OutOfMemory("too much") if len(items) > 1 else DeviceLost("gone")

    async with working(Worker(trouble=trouble), num_callers=2) as batcher:
        first = await asked(batcher, 9)
        second = await asked(batcher, 7, 3, timeout_s=1000)
        await refused(first)
        await refused(second)


@simulated
async def test_a_device_that_is_lost_while_a_caller_of_it_waits_for_company_gets_nothing_more() -> None:
    """Two callers of each device; at 10 the first device is lost, and its other caller has waited since 9."""
    bad, good = Worker(trouble=lost), Worker()
    async with working(bad, good, num_callers=2, max_wait_s=5) as batcher:
        large = await asked(batcher, 10)
        await until(9)
        small = await asked(batcher, 3)
        assert await large == [20]
        assert await small == [6]
    assert bad.batches == [[10]]


async def closing_at(time: float, batcher: Numbers) -> None:
    await until(time)
    await batcher.close()


@simulated
async def test_closing_while_a_device_runs_short_of_memory_leaves_nobody_waiting() -> None:
    worker = Worker(trouble=memory_for(5))
    async with working(worker) as batcher:
        asking = await asked(batcher, 4, 3, timeout_s=1000)
        await closing_at(1, batcher)
        assert len(await asking) == 2


@simulated
async def test_closing_while_a_device_is_lost_leaves_nobody_waiting() -> None:
    bad, good = Worker(trouble=lost), Worker()
    async with working(bad, good) as batcher:
        asking = await asked(batcher, 4, timeout_s=1000)
        await closing_at(1, batcher)
        assert len(await asking) == 1


@simulated
async def test_closing_while_the_last_device_is_lost_tells_everyone() -> None:
    async with working(Worker(trouble=lost)) as batcher:
        running = await asked(batcher, 10)
        queued = await asked(batcher, 9)
        await closing_at(1, batcher)
        await refused(running)
        assert [str(result) for result in await queued] == ["the batcher was closed"]


@simulated
async def test_a_batcher_without_devices_closes() -> None:
    async with working(Worker(trouble=lost), num_callers=2) as batcher:
        await refused(await asked(batcher, 4))
        await closing_at(10, batcher)
        assert [str(result) for result in await ask(batcher, 1)] == ["the batcher was closed"]


@simulated
async def test_closing_ends_the_wait_for_company() -> None:
    worker = Worker()
    async with working(worker, max_wait_s=50) as batcher:
        asking = await asked(batcher, 4)
        await closing_at(1, batcher)
        assert now() == 1
        assert [str(result) for result in await asking] == ["the batcher was closed"]
    assert worker.batches == []


@simulated
async def test_closing_forgets_nobody_who_has_left() -> None:
    async with working(Worker()) as batcher:
        running, queued = [await asked(batcher, item) for item in (10, 9)]
        await until(1)
        running.cancel()
        queued.cancel()
        await closing_at(2, batcher)
        assert now() == 10
        assert batcher.statistics.num_abandoned == 1


@simulated
async def test_a_batcher_closes_twice() -> None:
    async with working(Worker()) as batcher:
        await ask(batcher, 1)
        await batcher.close()
        await batcher.close()
