"""Ending tasks for certain, and letting them end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)

AGAIN_S = 0.2


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
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task failed", exc_info=error)
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
