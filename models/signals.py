"""Hearing that the process is told to end, before its server does."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

Handler = Callable[[int, FrameType | None], None]


@contextlib.contextmanager
def hearing_the_end(heard: Callable[[int, FrameType | None, Handler], None]) -> Iterator[None]:
    """While this is open, SIGTERM and SIGINT come to `heard`, with what the server's own handler would have had.

    The third argument calls that handler. Outside the main thread, where whoever runs the loop ends it otherwise,
    nothing is heard.
    """
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def pass_on(number: int, frame: FrameType | None) -> None:
        handler = previous[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    try:
        for number in previous:
            signal.signal(number, lambda number, frame: heard(number, frame, pass_on))
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
