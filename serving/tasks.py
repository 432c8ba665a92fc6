"""Ending tasks for certain, letting them end, letting them go on alone, and having a few of them at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)

AGAIN_S = 0.2

_apart: set[asyncio.Task[Any]] = set()  # a loop refers weakly to its tasks


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancels tasks until they are done: redis-py, by asyncio.wait_for of Python 3.11, may forget a cancellation.

    Who is cancelled meanwhile goes when all of them are done.
    """
    was_cancelled = False
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        try:
            await asyncio.wait(left, timeout=AGAIN_S)
        except asyncio.CancelledError:
            was_cancelled = True
    for task in tasks:
        _tell_failure(task)
    if was_cancelled:
        raise asyncio.CancelledError


async def finish(work: Coroutine[Any, Any, T] | asyncio.Task[T]) -> T:
    """The result of work that goes on where who waits for it is cancelled, who then goes when it is done."""
    task = asyncio.ensure_future(work)
    was_cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            was_cancelled = True
    if was_cancelled:
        raise asyncio.CancelledError from task.exception()
    return task.result()


async def apart(work: Coroutine[Any, Any, T]) -> T:
    """The result of work that goes on where who waits for it is cancelled, who goes at once.

    Nobody is there to learn of its failure then, so it is logged.
    """
    task = asyncio.ensure_future(work)
    _apart.add(task)
    task.add_done_callback(_apart.discard)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_tell_failure)
        raise


async def settle() -> None:
    """Waits for what goes on apart in this event loop."""
    loop = asyncio.get_running_loop()
    while here := [task for task in _apart if task.get_loop() is loop]:
        await asyncio.wait(here)


def _tell_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("a task failed", exc_info=error)


async def a_few_at_a_time(items: Iterable[T], work: Callable[[T], Awaitable[None]], count: int) -> None:
    """Works on all items, `count` of them at the same time, in their order.

    Raises:
        Exception: what the first that failed raised; the others were cancelled.
    """
    waiting = iter(items)

    async def take() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(take())
    except BaseExceptionGroup as group_error:
        error = group_error.exceptions[0]
        raise error from error.__cause__
