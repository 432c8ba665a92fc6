"""Ending tasks for certain, and letting them end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)

AGAIN_S = 0.2


async def end(task: asyncio.Task[Any]) -> None:
    """Cancels a task until it is done: redis-py, by asyncio.wait_for of Python 3.11, may forget a cancellation.

    Who is cancelled meanwhile goes when the task is done.
    """
    was_cancelled = False
    while not task.done():
        task.cancel()
        try:
            await asyncio.wait([task], timeout=AGAIN_S)
        except asyncio.CancelledError:
            was_cancelled = True
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("a task failed", exc_info=error)
    if was_cancelled:
        raise asyncio.CancelledError


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """The result of work that goes on where who waits for it is cancelled, who then goes when it is done."""
    task = asyncio.create_task(work)
    was_cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            was_cancelled = True
    if was_cancelled:
        raise asyncio.CancelledError from task.exception()
    return task.result()
