"""Callers who are refused, who run out of time and who leave. A worker does 1 a second."""

from __future__ import annotations

import asyncio

import pytest

from models.batcher import Batcher, Limits
from models.failures import QueueFull, TooLate
from models.forecast import RETRY_AFTER_S
from tests.models.devices import Held, Numbers, results, running, settle
from tests.models.simulation import Worker, ask, asked, lost_with, now, simulated, until, working


async def refusal(batcher: Numbers, *items: int) -> float:
    """The call must meet a full queue. What it is told."""
    before = batcher.statistics
    num_rejected, queue = before.num_rejected_calls, (before.queue_items, before.queue_cost)
    with pytest.raises(QueueFull) as caught:
        await ask(batcher, *items)
    after = batcher.statistics
    assert after.num_rejected_calls == num_rejected + 1
    assert (after.queue_items, after.queue_cost) == queue
    return caught.value.retry_after_s


@pytest.mark.parametrize("leaver", [0, 1])
async def test_a_caller_who_leaves_takes_nothing_from_who_asks_the_same(leaver: int) -> None:
    device = Held()
    async with running(device) as batcher:
        busy = asyncio.create_task(results(batcher, [9]))
        await device.started()
        callers = []
        for _ in range(2):
            callers.append(asyncio.create_task(results(batcher, [4])))
            await settle()
        callers[leaver].cancel()
        with pytest.raises(asyncio.CancelledError):
            await callers[leaver]
        device.let_go(2)
        assert await busy == [18]
        assert await callers[1 - leaver] == [8]


@simulated
async def test_what_nobody_wants_any_more_is_never_run() -> None:
    worker = Worker()
    async with working(worker) as batcher:
        busy = await asked(batcher, 9)
        await until(1)
        leaving = await asked(batcher, 6, 5, 6)
        staying = await asked(batcher, 5, 4)
        await until(2)
        assert (batcher.statistics.queue_items, batcher.statistics.queue_cost) == (3, 15)
        leaving.cancel()
        await until(3)
        assert (batcher.statistics.queue_items, batcher.statistics.queue_cost) == (2, 9)
        assert batcher.statistics.num_abandoned == 1
        assert await staying == [10, 8]
        assert await busy == [18]
        assert worker.batches == [[9], [5, 4]]
        assert await ask(batcher, 6) == [12]  # a later caller is not bound to it


@simulated
async def test_a_batch_that_runs_goes_on_without_its_caller() -> None:
    worker = Worker()
    async with working(worker) as batcher:
        leaving = await asked(batcher, 9)
        await until(1)
        leaving.cancel()
        await until(2)
        assert await ask(batcher, 9) == [18]  # who comes later has it at the time it was begun for
        assert now() == 9
        assert batcher.statistics.num_abandoned == 0
    assert worker.batches == [[9]]


@simulated
async def test_a_call_that_runs_out_of_time_says_so_at_once() -> None:
    worker = Worker()
    async with working(worker, budget=5) as batcher:
        with pytest.raises(TimeoutError):
            await ask(batcher, 4, 6, 5, timeout_s=7)  # one is done, one runs, one waits
        assert now() == 7
        assert batcher.statistics.num_expired_calls == 1
        assert batcher.statistics.num_abandoned == 1
        assert (batcher.statistics.queue_items, batcher.statistics.queue_cost) == (0, 0)
    assert now() == 10
    assert worker.batches == [[4], [6]]


@simulated
async def test_what_others_want_stays_when_a_call_runs_out_of_time() -> None:
    worker = Worker()
    async with working(worker) as batcher:
        busy = await asked(batcher, 10)
        other = await asked(batcher, 5)
        await until(1)
        with pytest.raises(TimeoutError):
            await ask(batcher, 5, 4, timeout_s=3)
        assert await other == [10]
        assert await busy == [20]
        assert batcher.statistics.num_abandoned == 1
    assert worker.batches == [[10], [5]]


@simulated
async def test_a_call_that_is_done_in_time_is_answered() -> None:
    async with working(Worker()) as batcher:
        assert await ask(batcher, 4, timeout_s=5) == [8]
        await until(60)
        assert batcher.statistics.num_expired_calls == 0


@simulated
async def test_a_call_may_wait_for_ever_by_default() -> None:
    async with working(Worker(rate=1e-6)) as batcher:
        assert await ask(batcher, 9) == [18]
        assert now() == 9e6


@simulated
async def test_a_full_queue_refuses_until_it_has_room() -> None:
    worker = Worker(rate=2)
    async with working(worker, max_queue_cost=20) as batcher:
        await ask(batcher, 10)  # until 5; the rate is known now
        calls = [await asked(batcher, item) for item in (9, 7, 12)]
        await until(6)
        assert batcher.statistics.queue_cost == 19
        calls.append(await asked(batcher, 30, 31))  # whole, or not at all
        await until(7)
        assert batcher.statistics.queue_cost == 80
        assert await refusal(batcher, 1) == 40
        assert await refusal(batcher, *range(1, 101)) == 40
        await until(34)  # 9, 7, 12 and 30 have begun: 31 waits
        assert await refusal(batcher, 1) == 15.5
        await until(35)
        assert await ask(batcher, 1) == [2]
        assert [await call for call in calls] == [[18], [14], [24], [60, 62]]


@simulated
async def test_the_queue_is_full_when_its_limit_is_reached_and_not_before() -> None:
    async with working(Worker(), max_queue_cost=8) as batcher:
        calls = [await asked(batcher, item) for item in (10, 7)]
        await until(1)
        calls.append(await asked(batcher, 1))
        await until(2)
        await refusal(batcher, 2)
        assert [await call for call in calls] == [[20], [14], [2]]


@simulated
async def test_what_was_let_in_before_is_taken_however_much_waits() -> None:
    async with working(Worker(), max_queue_cost=5) as batcher:
        calls = [await asked(batcher, item) for item in (10, 7)]
        await until(1)
        admitted = await asked(batcher, 6, is_admitted=True)
        await until(2)
        assert batcher.statistics.queue_cost == 13
        await refusal(batcher, 1)
        assert [await call for call in calls] == [[20], [14]]
        assert await admitted == [12]


@simulated
async def test_nothing_asked_is_never_too_much() -> None:
    async with working(Worker(), max_queue_cost=5) as batcher:
        calls = [await asked(batcher, item) for item in (10, 7)]
        await until(1)
        assert await ask(batcher) == []
        assert [await call for call in calls] == [[20], [14]]


@simulated
async def test_who_leaves_makes_room_in_the_queue() -> None:
    async with working(Worker(), max_queue_cost=5) as batcher:
        busy, leaving = [await asked(batcher, item) for item in (10, 7)]
        await until(1)
        await refusal(batcher, 1)
        leaving.cancel()
        await until(2)
        assert await ask(batcher, 1) == [2]
        assert await busy == [20]


@pytest.mark.parametrize(
    ("rate", "told"), [(None, RETRY_AFTER_S[0]), (1e-3, RETRY_AFTER_S[1]), (2.5, 4), (1e3, RETRY_AFTER_S[0])]
)
@simulated
async def test_whoever_is_refused_is_told_when_the_queue_will_be_empty(rate: float | None, told: float) -> None:
    worker = Worker(rate=rate or 1)
    async with working(worker, max_queue_cost=10) as batcher:
        if rate is not None:
            await ask(batcher, 1)
        worker.rate = 1
        calls = [await asked(batcher, item) for item in (9, 10)]
        await asyncio.sleep(1)
        assert await refusal(batcher, 1) == told
        assert [await call for call in calls] == [[18], [20]]


@simulated
async def test_all_live_devices_work_off_the_queue() -> None:
    workers = [Worker(rate=1), Worker(rate=4, trouble=lost_with(28))]
    async with working(*workers, budget=4, max_queue_cost=10) as batcher:
        await ask(batcher, 4, 16)
        busy = [await asked(batcher, item) for item in (27, 28, 10)]
        await asyncio.sleep(1)
        assert await refusal(batcher, 1) == 10 / (1 + 4)
        await asyncio.sleep(7)  # the other device is lost, what it held waits
        assert batcher.statistics.queue_cost == 38
        assert await refusal(batcher, 1) == 38 / 1
        assert [await call for call in busy] == [[54], [56], [20]]


@simulated
async def test_no_queue_is_too_long_by_default() -> None:
    async with working(Worker()) as batcher:
        busy = await asked(batcher, 10**5, 10**4)
        await until(1)
        assert await ask(batcher, 1) == [2]
        await busy


@pytest.mark.parametrize("timeout_s", [12, 30])
@simulated
async def test_twice_as_much_as_can_be_done_is_done_by_half_and_the_rest_is_refused(timeout_s: int) -> None:
    """What expires while it runs would be computed for nobody, and so would everything behind it."""
    batcher: Numbers = Batcher([Worker(rate=1e6)], lambda item: item // 1_000_000, Limits(budget=4))
    await ask(batcher, 4_000_000)  # the rate is known
    began = now()

    async def ask_once(number: int) -> list[int | Exception] | Exception:
        await until(began + number)
        try:
            return await ask(batcher, 2_000_000 + number, timeout_s=timeout_s)
        except (TooLate, TimeoutError) as error:
            return error

    answers = await asyncio.gather(*(ask_once(number) for number in range(1000)))
    await batcher.close()
    kinds = [type(answer) for answer in answers]
    assert kinds.count(list) >= 0.95 * 500
    assert kinds.count(TimeoutError) <= 0.02 * 500


@simulated
async def test_who_comes_too_late_is_told_when_it_might_not_be() -> None:
    async with working(Worker()) as batcher:
        await ask(batcher, 10)
        busy = [await asked(batcher, cost) for cost in (10, 9, 8, 7)]
        large = [6, 5, 4]  # due behind them
        for timeout_s, retry_after_s in ((60, 1), (30, 25), (20, 33)):
            with pytest.raises(TooLate) as caught:
                await ask(batcher, *large, timeout_s=timeout_s)
            assert caught.value.retry_after_s == pytest.approx(retry_after_s, abs=0.2)
        assert batcher.statistics.num_rejected_calls == 3
        assert await ask(batcher, *large, timeout_s=62) == [12, 10, 8]
        assert await asyncio.gather(*busy) == [[20], [18], [16], [14]]


@simulated
async def test_what_will_not_end_in_time_is_not_begun_while_other_work_waits() -> None:
    worker = Worker()
    async with working(worker, budget=9) as batcher:
        await ask(batcher, 9)
        busy = await asked(batcher, 9)
        late = await asked(batcher, 3, timeout_s=14, is_admitted=True)
        other = await asked(batcher, 7, 8, is_admitted=True)
        with pytest.raises(TimeoutError):
            await late
        assert await other == [14, 16]
        await busy
        assert worker.batches == [[9], [9], [7], [8]]
        alone = await asked(batcher, 5, timeout_s=3)
        with pytest.raises(TimeoutError):
            await alone
    assert worker.batches[-1] == [5], "nothing else was to be done"


@simulated
async def test_who_goes_first_is_not_too_late_for_what_comes_behind() -> None:
    async with working(Worker()) as batcher:
        await ask(batcher, 10)
        busy = await asked(batcher, 10, *range(10, 0, -1))
        assert await ask(batcher, 11, timeout_s=31) == [22]
        assert now() <= 10 + 31
        await busy


@simulated
async def test_who_is_let_in_before_or_has_too_little_time_by_himself_is_not_told_that_he_is_too_late() -> None:
    async with working(Worker()) as batcher:
        await ask(batcher, 10)
        busy = await asked(batcher, 10, 9, 8)
        for items, is_admitted in (((6, 5), True), ((12, 7), False), ((9,), False)):
            with pytest.raises(TimeoutError):
                await ask(batcher, *items, timeout_s=5, is_admitted=is_admitted)
        await busy
