"""Blocking work off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def run_to_its_end(work: Callable[[], None]) -> None:
    """Runs blocking work in a thread. Who is cancelled meanwhile goes only when it is over.

    For work on a file, which must not be closed under it.
    """
    thread = asyncio.ensure_future(asyncio.to_thread(work))
    was_cancelled = False
    while not thread.done():
        try:
            await asyncio.shield(thread)
        except asyncio.CancelledError:
            was_cancelled = True
    if was_cancelled:
        raise asyncio.CancelledError
    thread.result()
