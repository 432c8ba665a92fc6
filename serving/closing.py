"""When this process was told to end: what would go on for long can stop before its server waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def told_to_end(event: asyncio.Event) -> Iterator[None]:
    """Sets the event when a signal to end arrives; the server's own handlers are called as before."""
    loop = asyncio.get_running_loop()
    previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(event.set)
        handler = previous[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    try:
        for number in _SIGNALS:
            signal.signal(number, note)
    except ValueError:  # not the main thread: whoever runs the loop there ends it otherwise
        yield
        return
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
