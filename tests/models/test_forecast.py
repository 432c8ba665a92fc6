"""What a batcher reckons with before its devices had enough to do, and behind that."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from models.failures import TooLate
from tests.models.devices import Numbers
from tests.models.simulation import Answer, Worker, ask, asked, now, simulated, until, working


async def visit(batcher: Numbers, num_visitors: int, until_s: float) -> None:
    """Each asks for one small thing after another; a lone one, for one a second."""

    async def ask_again_and_again() -> None:
        while now() < until_s:
            began = now()
            await ask(batcher, next(small))
            await asyncio.sleep(max(0, began + 1 - now()) if num_visitors == 1 else 0)

    small = itertools.cycle(range(1, 20))
    await asyncio.gather(*(ask_again_and_again() for _ in range(num_visitors)))


@pytest.mark.parametrize("num_visitors", [0, 1, 2])
@pytest.mark.parametrize("layout", [{}, {"num_callers": 2}, {"num_callers": 2, "divides": True}])
@simulated
async def test_a_little_to_do_says_nothing_of_how_long_much_takes(
    num_visitors: int, layout: dict[str, Any]
) -> None:
    """A full batch takes 0.22 s. By what small ones take, one in 24 calls would be in time, and what comes behind
    them in a steady stream would go before."""
    async with working(Worker(rate=20_000, each_s=0.02), budget=4096, **layout) as batcher:
        await visit(batcher, num_visitors, until_s=25)
        assert not batcher.statistics.devices[0].is_rated
        stream: list[Answer] = []
        first = [await asked(batcher, 2400 + number, timeout_s=8) for number in range(24)]
        for number in range(100):
            await asyncio.sleep(2500 / 18_000)
            stream.append(await asked(batcher, 2500 + number, timeout_s=8))
        assert [await call for call in first] == [[2 * (2400 + number)] for number in range(24)]
        assert [await call for call in stream] == [[2 * (2500 + number)] for number in range(100)]
        rate = batcher.statistics.devices[0].cost_per_s
        assert rate > 15_000
        await visit(batcher, num_visitors, until_s=now() + 25)
        assert batcher.statistics.devices[0].cost_per_s == rate


@simulated
async def test_the_first_batch_of_all_does_not_say_how_long_much_takes() -> None:
    worker = Worker(rate=4_000)
    async with working(worker, budget=4096) as batcher:
        await ask(batcher, 2400)
        worker.rate = 20_000
        calls = [await asked(batcher, 2401 + number, timeout_s=8) for number in range(24)]
        assert [await call for call in calls] == [[2 * (2401 + number)] for number in range(24)]


@simulated
async def test_nothing_is_passed_over_by_what_small_batches_take() -> None:
    worker = Worker(rate=100, each_s=1)
    async with working(worker, budget=100) as batcher:
        await ask(batcher, 1)
        busy = await asked(batcher, 20)
        in_time = await asked(batcher, 90, timeout_s=5)
        last = await asked(batcher, 91)
        await asyncio.gather(busy, in_time, last)
    assert worker.batches == [[1], [20], [90], [91]]


@simulated
async def test_small_batches_while_more_waits_tell_how_long_it_takes() -> None:
    async with working(Worker(), max_items=1, budget=1000) as batcher:
        busy = await asked(batcher, *range(1, 60))
        await until(600)
        with pytest.raises(TooLate):
            await ask(batcher, 60, 61, timeout_s=200)
        await busy


@pytest.mark.parametrize(("other", "is_refused"), [(Worker(each_s=9), False), (Worker(each_s=1e6), True)])
@simulated
async def test_nobody_is_refused_while_one_device_had_little_to_do_unless_it_hangs(
    other: Worker, is_refused: bool
) -> None:
    async with working(Worker(), other, budget=100) as batcher:
        first, little = await asked(batcher, 50), await asked(batcher, 1)
        await first
        assert [device.is_rated for device in batcher.statistics.devices] == [True, False]
        busy = [await asked(batcher, cost) for cost in (74, 73, 72, 71)]
        late = await asked(batcher, 70, 40, timeout_s=150)
        assert batcher.statistics.num_rejected_calls == is_refused
        late.cancel()
        await asyncio.gather(little, *busy)
