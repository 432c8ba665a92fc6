"""A process that is told to end knows it before its server waits for anybody."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from serving.closing import told_to_end


@pytest.fixture
def received() -> Iterator[list[int]]:
    """Signals that a server's own handlers got."""
    numbers: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        numbers.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_is_noted_and_the_server_gets_it_too(received: list[int], number: int) -> None:
    event, handler = asyncio.Event(), signal.getsignal(number)
    with told_to_end(event):
        assert not event.is_set()
        os.kill(os.getpid(), number)
        await asyncio.wait_for(event.wait(), timeout=5)
        assert received == [number]
    assert signal.getsignal(number) is handler


async def test_where_no_server_listens_the_signal_is_noted_all_the_same() -> None:
    event, before = asyncio.Event(), signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with told_to_end(event):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(event.wait(), timeout=5)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_in_another_thread_there_is_nothing_to_listen_to(received: list[int]) -> None:
    handler = signal.getsignal(signal.SIGTERM)

    async def listen() -> None:
        with told_to_end(asyncio.Event()):
            assert signal.getsignal(signal.SIGTERM) is handler

    await asyncio.to_thread(asyncio.run, listen())
    assert signal.getsignal(signal.SIGTERM) is handler
