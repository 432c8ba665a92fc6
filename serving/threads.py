"""Blocking work off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Below this, work on so many bytes is done before a thread would have begun with it (about 0.1 ms there and back)
THREAD_BYTES = 16_384


async def run_to_its_end(work: Callable[[], T], size_bytes: int = THREAD_BYTES) -> T:
    """The result of blocking work on so many bytes: in a thread, if they are worth one.

    Who is cancelled meanwhile goes only when the work is over: a file must not be closed under it.
    """
    if size_bytes < THREAD_BYTES:
        return work()
    thread = asyncio.ensure_future(asyncio.to_thread(work))
    was_cancelled = False
    while not thread.done():
        try:
            await asyncio.wait([thread])
        except asyncio.CancelledError:
            was_cancelled = True
    if was_cancelled:
        raise asyncio.CancelledError from thread.exception()
    return thread.result()
