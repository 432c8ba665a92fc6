"""What a caller may take of a device that divides, and when all of the device is free again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from models.crew import Crew
from models.schedule import Entry, Schedule
from models.statistics import DeviceStatistics
from tests.models.devices import DEADLINE_S, double

BUDGET = 10


def queue_of(*costs: int) -> Schedule[int]:
    queue: Schedule[int] = Schedule()
    for number, cost in enumerate(costs):
        queue.put(Entry(number, cost, arrived=0, due=number))
    return queue


@pytest.mark.parametrize(
    ("costs", "inflight", "expected"),
    [
        ([BUDGET], 0, (BUDGET, False)),
        ([3, 4], 0, (BUDGET, False)),  # one batch has them both
        ([3 * BUDGET], 0, (BUDGET, False)),  # nothing to divide
        ([3, 4], 1, (4, True)),  # half of 7, beside another share
        ([BUDGET, 1], 0, (5, True)),
        ([BUDGET, BUDGET, BUDGET], 0, (5, True)),
    ],
)
async def test_a_device_is_shared_while_more_waits_than_a_batch(
    costs: list[int], inflight: int, expected: tuple[int, bool]
) -> None:
    crew: Crew[int, int] = Crew([double], 2, [double], on_free=lambda: None)
    assert crew.room(DeviceStatistics(BUDGET, inflight_batches=inflight), queue_of(*costs)) == expected
    crew.close()


async def test_a_device_that_does_not_divide_is_never_shared() -> None:
    crew: Crew[int, int] = Crew([double], 2, None, on_free=lambda: None)
    assert crew.room(DeviceStatistics(BUDGET, inflight_batches=1), queue_of(BUDGET, BUDGET)) == (BUDGET, False)
    crew.close()


@pytest.mark.parametrize("fails", [False, True])
async def test_all_of_a_device_is_taken_until_its_batch_is_done(fails: bool) -> None:
    may_end, freed = threading.Event(), []

    def device(items: Sequence[int]) -> list[int | Exception]:
        assert may_end.wait(DEADLINE_S)
        if fails:
            raise OSError("broken")
        return double(items)

    crew: Crew[int, int] = Crew([device], 2, [double], on_free=lambda: freed.append(crew.is_taken(0)))
    batch = asyncio.create_task(crew.compute(0, [4], is_share=False))
    await asyncio.sleep(0)
    assert crew.is_taken(0)
    may_end.set()
    await asyncio.wait([batch])
    assert isinstance(batch.exception(), OSError) if fails else batch.result() == [8]
    assert freed == [False]
    assert await crew.compute(0, [4], is_share=True) == [8]
    assert freed == [False]  # a share takes nothing from another
    crew.close()
