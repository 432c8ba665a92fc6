"""A runner outlives the gateways that need it: told to end, it goes when the last of them has gone.

BentoML tells all its processes to end at once. A gateway then finishes what it has let in, and needs its runners.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from types import FrameType

from models.signals import Handler, hearing_the_end

logger = logging.getLogger(__name__)

LINGER_S = 0.25  # for which nobody may be there: a gateway's call ends now and then, and is made anew


class Attendance:
    """Who is there. A gateway worker holds one call of `attend` open for as long as it may need the runner."""

    def __init__(self) -> None:
        self._count = 0
        self._is_over = asyncio.Event()

    async def attend(self) -> None:
        """Until the caller leaves (it is cancelled then), or the runner goes."""
        self._count += 1
        try:
            await self._is_over.wait()
        finally:
            self._count -= 1

    async def until_alone(self, limit_s: float) -> None:
        """Returns when nobody is there any more, or it has been so long."""
        loop = asyncio.get_running_loop()
        deadline, alone_since = loop.time() + limit_s, None
        while loop.time() < deadline:
            if self._count:
                alone_since = None
            else:
                alone_since = alone_since or loop.time()
                if loop.time() - alone_since >= LINGER_S:
                    return
            await asyncio.sleep(LINGER_S / 5)
        logger.warning("the runner ends after %g s, with %d gateway workers left", limit_s, self._count)

    def end(self) -> None:
        """Lets everybody go."""
        self._is_over.set()


@contextlib.contextmanager
def ending_last(attendance: Attendance, limit_s: float) -> Iterator[None]:
    """While this is open, SIGTERM and SIGINT reach the server's own handlers when nobody attends any more.

    A second signal does at once, as does the first one outside the main thread.
    """
    loop = asyncio.get_running_loop()
    waiting: list[asyncio.Task[None]] = []

    def end(number: int, pass_on: Handler) -> None:
        attendance.end()
        pass_on(number, None)

    async def wait(number: int, pass_on: Handler) -> None:
        await attendance.until_alone(limit_s)
        end(number, pass_on)

    def heard(number: int, _: FrameType | None, pass_on: Handler) -> None:
        if waiting:
            loop.call_soon_threadsafe(end, number, pass_on)
        else:
            loop.call_soon_threadsafe(lambda: waiting.append(loop.create_task(wait(number, pass_on))))

    with hearing_the_end(heard):
        yield
