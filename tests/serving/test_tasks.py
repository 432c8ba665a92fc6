"""Tasks that are ended for certain, and tasks that are let end."""

from __future__ import annotations

import asyncio

import pytest

from serving import tasks
from serving.tasks import apart, end, finish, settle


async def stubborn(times: int) -> int:
    """Forgets so many cancellations; returns how many there were if it comes to its end."""
    for forgotten in range(times):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            assert forgotten < times
    await asyncio.Event().wait()
    return times


async def test_tasks_are_cancelled_until_they_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "AGAIN_S", 0.001)
    many = [asyncio.create_task(stubborn(times)) for times in (0, 1, 3)]
    await asyncio.sleep(0)
    await end(*many)
    assert all(task.cancelled() for task in many)
    await end()


async def test_a_task_that_has_not_begun_is_ended_too() -> None:
    task = asyncio.create_task(stubborn(0))
    await end(task)
    assert task.cancelled()


async def test_a_task_that_is_done_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    async def answer() -> int:
        return 42

    task = asyncio.create_task(answer())
    await asyncio.wait([task])
    await end(task)
    assert task.result() == 42
    assert caplog.records == []


async def test_how_a_task_failed_is_logged_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ZeroDivisionError("in the end")

    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    await end(task)
    assert "in the end" in caplog.text


async def test_who_is_cancelled_while_ending_tasks_goes_when_all_of_them_are_done() -> None:
    may_end = asyncio.Event()

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            while not may_end.is_set():
                try:
                    await may_end.wait()
                except asyncio.CancelledError:
                    pass

    tasks = [asyncio.create_task(slow()) for _ in range(2)]
    await asyncio.sleep(0)
    ending = asyncio.create_task(end(*tasks))
    for _ in range(3):
        await asyncio.sleep(0)
        ending.cancel()
    await asyncio.sleep(0)
    assert not ending.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert all(task.cancelled() for task in tasks)


async def test_work_that_is_finished_has_a_result_or_an_error() -> None:
    async def divide(by: int) -> int:
        await asyncio.sleep(0)
        return 6 // by

    assert await finish(divide(2)) == 3
    with pytest.raises(ZeroDivisionError):
        await finish(divide(0))


@pytest.mark.parametrize("fails", [False, True])
async def test_work_goes_on_where_who_waits_for_it_is_cancelled(fails: bool) -> None:
    may_end, has_ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await may_end.wait()
        has_ended.set()
        if fails:
            raise ZeroDivisionError

    waiting = asyncio.create_task(finish(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert has_ended.is_set()


async def test_work_goes_on_apart_from_who_has_left_and_can_be_waited_for() -> None:
    may_end, ended = asyncio.Event(), []

    async def work(number: int) -> int:
        await may_end.wait()
        await asyncio.sleep(0)
        ended.append(number)
        return number

    staying = asyncio.create_task(apart(work(1)))
    leaving = asyncio.create_task(apart(work(2)))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    may_end.set()
    assert not ended
    await settle()
    assert ended == [1, 2]
    assert await staying == 1
    await settle()  # nothing is left


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_failure_apart_is_told_to_who_waits_or_logged(
    leaves: bool, caplog: pytest.LogCaptureFixture
) -> None:
    may_fail = asyncio.Event()

    async def fail() -> None:
        await may_fail.wait()
        raise ValueError("in the end")

    waiting = asyncio.create_task(apart(fail()))
    await asyncio.sleep(0)
    if leaves:
        waiting.cancel()
    else:
        may_fail.set()
    with pytest.raises(asyncio.CancelledError if leaves else ValueError):
        await waiting
    may_fail.set()
    await settle()
    assert ("in the end" in caplog.text) == leaves
