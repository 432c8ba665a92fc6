"""What a caller may take of a device that divides, and when all of the device is free again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from models.crew import Crew, Device, Part
from models.schedule import Entry, Schedule
from models.statistics import DeviceStatistics
from tests.models.devices import DEADLINE_S, double

BUDGET = 10


def queue_of(*costs: int) -> Schedule[int]:
    queue: Schedule[int] = Schedule()
    for number, cost in enumerate(costs):
        queue.put(Entry(number, cost, arrived=0, due=number))
    return queue


def is_taken(crew: Crew[int, int]) -> bool:
    """Whether the device is out of reach of what would go beside a batch that runs there."""
    return crew.must_wait(0, DeviceStatistics(BUDGET, inflight_batches=1), queue_of(BUDGET))


@pytest.mark.parametrize(
    ("costs", "inflight", "expected"),
    [
        ([BUDGET], 0, (BUDGET, "all")),
        ([3, 4], 0, (BUDGET, "all")),  # one batch has them both
        ([3 * BUDGET], 0, (BUDGET, "all")),  # nothing to divide
        ([3, 4], 1, (4, "share")),  # half of 7, beside another share
        ([BUDGET, 1], 0, (5, "share")),
        ([BUDGET, BUDGET, BUDGET], 0, (5, "share")),
    ],
)
async def test_a_device_is_shared_while_more_waits_than_a_batch(
    costs: list[int], inflight: int, expected: tuple[int, Part]
) -> None:
    crew: Crew[int, int] = Crew([double], 2, [double])
    assert crew.room(DeviceStatistics(BUDGET, inflight_batches=inflight), queue_of(*costs)) == expected
    crew.close()


async def test_a_device_that_does_not_divide_is_never_shared() -> None:
    crew: Crew[int, int] = Crew([double], 2, None)
    assert crew.room(DeviceStatistics(BUDGET, inflight_batches=1), queue_of(BUDGET, BUDGET)) == (BUDGET, "place")
    crew.close()


@pytest.mark.parametrize("shares", [None, [double]])
async def test_what_wants_a_device_gets_all_of_it_once_it_is_idle(shares: list[Device[int, int]] | None) -> None:
    crew: Crew[int, int] = Crew([double], 2, shares)
    queue = queue_of(BUDGET, BUDGET)
    first = queue.first()
    assert first is not None
    first.wants_device = True
    assert crew.must_wait(0, DeviceStatistics(BUDGET, inflight_batches=1), queue)
    idle = DeviceStatistics(BUDGET)
    assert not crew.must_wait(0, idle, queue)
    assert crew.room(idle, queue) == (BUDGET, "all")
    crew.close()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("shares", [None, [double]])
async def test_all_of_a_device_is_taken_until_its_batch_is_done(
    fails: bool, shares: list[Device[int, int]] | None
) -> None:
    may_end = threading.Event()

    def device(items: Sequence[int]) -> list[int | Exception]:
        assert may_end.wait(DEADLINE_S)
        if fails:
            raise OSError("broken")
        return double(items)

    crew: Crew[int, int] = Crew([device], 2, shares)
    batch = asyncio.create_task(crew.compute(0, [4], "all"))
    await asyncio.sleep(0)
    assert is_taken(crew)
    may_end.set()
    await asyncio.wait([batch])
    assert isinstance(batch.exception(), OSError) if fails else batch.result() == [8]
    assert not is_taken(crew)
    crew.close()


@pytest.mark.parametrize(("part", "shares"), [("place", None), ("share", [double])])
async def test_a_part_of_a_device_takes_nothing_from_another(
    part: Part, shares: list[Device[int, int]] | None
) -> None:
    crew: Crew[int, int] = Crew([double], 2, shares)
    batch = asyncio.create_task(crew.compute(0, [4], part))
    await asyncio.sleep(0)
    assert not is_taken(crew)
    assert await batch == [8]
    crew.close()
