"""Who goes first, and what the batcher knows of its devices' rates to tell. A worker does 1 a second."""

from __future__ import annotations

import pytest

from models import batcher as batcher_module
from models.schedule import DELAYS_S
from tests.models.devices import Numbers
from tests.models.simulation import Answer, Worker, ask, asked, now, simulated, until, working


@pytest.fixture(autouse=True)
def _in_ones_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """An item is due when its call alone would be done."""
    monkeypatch.setattr(batcher_module, "STRETCH", 1.0)


async def all_of(*asking: Answer) -> None:
    for task in asking:
        await task


async def warm_up(batcher: Numbers) -> float:
    """From here on the rate is known to be 1. What time it is."""
    await ask(batcher, 100)
    assert batcher.statistics.devices[0].cost_per_s == 1
    return now()


@simulated
async def test_before_a_rate_is_known_calls_go_as_they_come() -> None:
    worker = Worker()
    async with working(worker) as batcher:
        first = await asked(batcher, 10, 11, 12)
        await until(1)
        await all_of(first, await asked(batcher, 3))
    assert worker.batches == [[10], [11], [12], [3]]


@simulated
async def test_a_small_call_goes_before_what_a_large_one_has_just_put_in() -> None:
    worker = Worker()
    async with working(worker) as batcher:
        start = await warm_up(batcher)
        large = await asked(batcher, 10, 11, 12, 13)
        await until(start + 2)
        await all_of(large, await asked(batcher, 3))
    assert worker.batches[1:] == [[10], [3], [11], [12], [13]]


@simulated
async def test_large_calls_that_share_a_device_are_not_late_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is twice as slow as alone, which is less than what makes it urgent."""
    monkeypatch.setattr(batcher_module, "STRETCH", 4.0)
    worker = Worker()
    async with working(worker) as batcher:
        start = await warm_up(batcher)
        one = await asked(batcher, 10, 11, 12)  # due at 40, 84, 132
        other = await asked(batcher, 13, 14, 15)  # due at 52, 108, 168
        await until(start + 50)
        await all_of(one, other, await asked(batcher, 3))  # due at 62; 12 has begun at 48
    assert worker.batches[1:] == [[10], [13], [11], [14], [12], [3], [15]]


@simulated
async def test_a_small_call_goes_behind_what_was_put_in_long_ago() -> None:
    worker = Worker()
    async with working(worker) as batcher:
        start = await warm_up(batcher)
        one = await asked(batcher, 10, 11, 12)  # due at 10, 21, 33
        other = await asked(batcher, 13, 14, 15)  # due at 13, 27, 42
        await until(start + 50)
        await all_of(one, other, await asked(batcher, 3))  # due at 53
    assert worker.batches[1:] == [[10], [13], [11], [14], [12], [15], [3]]


@pytest.mark.parametrize(("cost", "goes_before"), [(18, True), (20, False)])
@simulated
async def test_an_item_is_due_when_its_call_alone_would_be_done(cost: int, goes_before: bool) -> None:
    worker = Worker()
    async with working(worker) as batcher:
        start = await warm_up(batcher)
        large = await asked(batcher, 10, 11)  # due at 10, 21
        await until(start + 2)
        await all_of(large, await asked(batcher, cost))  # due at 20 or 22
    assert worker.batches[1:] == ([[10], [cost], [11]] if goes_before else [[10], [11], [cost]])


@simulated
async def test_the_rate_that_counts_is_that_of_all_devices() -> None:
    workers = [Worker(), Worker()]
    async with working(*workers) as batcher:
        await ask(batcher, 100, 101)
        start = now()
        large = await asked(batcher, 30, 31, 40)  # due at 15, 30.5, 50.5
        await until(start + 20)
        small = await asked(batcher, 59)  # due at 49.5
        await all_of(large, small)
    began = {batch.items[0]: batch.began - start for worker in workers for batch in worker.history}
    assert (began[59], began[40]) == (30, 31)


@simulated
async def test_bulk_goes_behind_what_is_interactive() -> None:
    worker = Worker()
    async with working(worker) as batcher:
        busy = await asked(batcher, 9)
        await until(1)
        bulk = await asked(batcher, 8, priority="bulk")
        await until(2)
        await all_of(busy, bulk, await asked(batcher, 7))
    assert worker.batches == [[9], [7], [8]]


@simulated
async def test_batches_of_bulk_are_small_for_a_while_behind_what_is_interactive() -> None:
    worker = Worker()
    async with working(worker, budget=40) as batcher:
        await ask(batcher, 1)
        await ask(batcher, 8, 9, 10, 11, 12, 13, 14, priority="bulk")
    assert worker.batches == [[1], [8, 9], [10, 11, 12], [13, 14]], "up to 20, and 10 seconds later up to 40"


@simulated
async def test_whoever_asks_only_whether_it_computes_makes_no_batches_small() -> None:
    worker = Worker()
    async with working(worker, budget=40) as batcher:
        await ask(batcher, 1, priority="probe")
        await ask(batcher, 8, 9, 10, 11, 12, 13, 14, priority="bulk")
        busy = await asked(batcher, 15, priority="bulk")
        bulk = await asked(batcher, 16, priority="bulk")
        await all_of(busy, bulk, await asked(batcher, 2, priority="probe"))
    assert worker.batches == [[1], [8, 9, 10, 11], [12, 13, 14], [15], [2, 16]]


@simulated
async def test_bulk_that_has_waited_for_its_delay_goes_before_what_comes_then() -> None:
    worker, delay = Worker(), DELAYS_S["bulk"]
    async with working(worker, budget=1) as batcher:
        start = await warm_up(batcher)
        busy = await asked(batcher, 30)
        await until(start + 1)
        bulk = await asked(batcher, 4, priority="bulk")  # due at 1 + delay + 4
        await until(start + delay - 2)
        before = await asked(batcher, 6)  # due at delay - 2 + 6
        await until(start + delay - 1)
        behind = await asked(batcher, 7)  # due at delay - 1 + 7
        await all_of(busy, bulk, before, behind)
    assert worker.batches[1:] == [[30], [6], [4], [7]]


@simulated
async def test_an_endless_stream_of_urgent_calls_does_not_starve_bulk() -> None:
    """Urgent calls alone are more than the worker can do, and go on for long behind the bulk call's turn."""
    worker, delay = Worker(), DELAYS_S["bulk"]
    async with working(worker, budget=1) as batcher:
        start = await warm_up(batcher)
        stream = [await asked(batcher, 3)]
        bulk = await asked(batcher, 2, priority="bulk")
        for second in range(1, 60):
            await until(start + second)
            stream.append(await asked(batcher, 3 + second))
        await bulk
        # Due at delay + 2: before it go at most the calls that came until then
        assert now() - start <= sum(3 + second for second in range(int(delay) + 2)) + 2
        await all_of(*stream)


@simulated
async def test_what_an_urgent_caller_joins_is_as_urgent() -> None:
    worker = Worker()
    async with working(worker) as batcher:
        busy = await asked(batcher, 9)
        await until(1)
        bulk = await asked(batcher, 8, 7, priority="bulk")
        await until(2)
        await all_of(busy, bulk, await asked(batcher, 7))
    assert worker.batches == [[9], [7], [8]]


@simulated
async def test_what_a_bulk_caller_joins_stays_urgent() -> None:
    worker = Worker()
    async with working(worker) as batcher:
        busy = await asked(batcher, 9)
        await until(1)
        urgent = [await asked(batcher, item) for item in (8, 7)]
        await all_of(busy, *urgent, await asked(batcher, 8, priority="bulk"))
    assert worker.batches == [[9], [8], [7]]


@simulated
async def test_the_rate_is_that_of_the_latest_batches() -> None:
    worker = Worker(rate=2)
    async with working(worker) as batcher:
        await until(5)  # being idle is not being slow
        await ask(batcher, 8)
        assert batcher.statistics.devices[0].cost_per_s == 2
        worker.rate = 4
        await until(30)
        await ask(batcher, 8)
        assert batcher.statistics.devices[0].cost_per_s == pytest.approx((8 + 8) / (4 + 2))
        for item in range(50):
            await ask(batcher, 1 + item)
        assert batcher.statistics.devices[0].cost_per_s == pytest.approx(4, rel=1e-6)


@simulated
async def test_batches_side_by_side_are_one_rate() -> None:
    """Two callers start together; the batches end at 2 and at 4 as on a device that does one after the other."""
    worker = Worker()
    async with working(worker, budget=1, num_callers=2) as batcher:
        asking = await asked(batcher, 2, 4)
        await until(3)
        assert batcher.statistics.devices[0].cost_per_s == 1
        await asking
        assert batcher.statistics.devices[0].cost_per_s == pytest.approx((2 + 4) / 4)


@simulated
async def test_a_batch_that_joins_another_does_not_hide_how_long_that_took() -> None:
    worker = Worker()
    async with working(worker, num_callers=2) as batcher:
        first = await asked(batcher, 8)
        await until(4)
        second = await asked(batcher, 9)
        await until(8.5)
        assert batcher.statistics.devices[0].cost_per_s == 8 / 8
        await all_of(first, second)


@simulated
async def test_batches_that_end_together_do_not_make_a_device_seem_faster_than_it_is() -> None:
    worker = Worker()
    async with working(worker, budget=2, num_callers=2) as batcher:
        await ask(batcher, 4, 3, 1)
        assert [batch.ended for batch in worker.history] == [4, 3, 4]
        assert batcher.statistics.devices[0].cost_per_s <= 8 / 4


@simulated
async def test_whoever_waits_for_company_starts_when_the_time_is_over() -> None:
    worker = Worker()
    async with working(worker, max_wait_s=5) as batcher:
        await until(1)
        first = await asked(batcher, 3)
        await until(4)
        await all_of(first, await asked(batcher, 4))
    assert [(batch.items, batch.began) for batch in worker.history] == [([3, 4], 6)]


@pytest.mark.parametrize(("budget", "max_items"), [(7, 100), (100, 2)])
@simulated
async def test_whoever_waits_for_company_starts_when_the_batch_is_full(budget: int, max_items: int) -> None:
    worker = Worker()
    async with working(worker, budget=budget, max_items=max_items, max_wait_s=5) as batcher:
        first = await asked(batcher, 3)
        await until(2)
        await all_of(first, await asked(batcher, 4))
    assert [(batch.items, batch.began) for batch in worker.history] == [([3, 4], 2)]


@simulated
async def test_what_waited_while_the_device_was_busy_does_not_wait_for_company_again() -> None:
    worker = Worker()
    async with working(worker, budget=9, max_wait_s=5) as batcher:
        busy = await asked(batcher, 9)
        await until(2)
        await all_of(busy, await asked(batcher, 3))
    assert [(batch.items, batch.began) for batch in worker.history] == [([9], 0), ([3], 9)]


@simulated
async def test_who_waited_for_company_and_left_leaves_the_device_free() -> None:
    worker = Worker()
    async with working(worker, max_wait_s=5) as batcher:
        leaving = await asked(batcher, 3)
        await until(1)
        leaving.cancel()
        await until(20)
        assert await ask(batcher, 4) == [8]
    assert [(batch.items, batch.began) for batch in worker.history] == [([4], 25)]
