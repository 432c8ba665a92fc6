"""When this process was told to end: what would go on for long can stop before its server waits for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from types import FrameType

from models.signals import Handler, hearing_the_end


@contextlib.contextmanager
def told_to_end(event: asyncio.Event) -> Iterator[None]:
    """Sets the event when a signal to end arrives; the server's own handlers are called as before."""
    loop = asyncio.get_running_loop()

    def heard(number: int, frame: FrameType | None, pass_on: Handler) -> None:
        loop.call_soon_threadsafe(event.set)
        pass_on(number, frame)

    with hearing_the_end(heard):
        yield
