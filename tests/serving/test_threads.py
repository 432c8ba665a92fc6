"""Blocking work off the event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from serving.threads import THREAD_BYTES, run_to_its_end


@pytest.mark.parametrize(("size_bytes", "is_here"), [(0, True), (THREAD_BYTES - 1, True), (THREAD_BYTES, False)])
async def test_only_work_that_is_worth_it_goes_to_a_thread(size_bytes: int, is_here: bool) -> None:
    worker = await run_to_its_end(threading.current_thread, size_bytes)
    assert (worker is threading.current_thread()) is is_here


@pytest.mark.parametrize("size_bytes", [0, THREAD_BYTES])
async def test_what_fails_there_fails_here(size_bytes: int) -> None:
    with pytest.raises(ZeroDivisionError):
        await run_to_its_end(lambda: 1 // 0, size_bytes)


async def test_who_is_cancelled_goes_when_the_work_is_over() -> None:
    has_begun, may_end, has_ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        has_begun.set()
        assert may_end.wait(10)
        has_ended.set()

    task = asyncio.create_task(run_to_its_end(work))
    await asyncio.to_thread(has_begun.wait)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert has_ended.is_set()
