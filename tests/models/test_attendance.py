"""A runner that is told to end waits for those who need it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator

import pytest

from models.attendance import LINGER_S, Attendance, ending_last


@pytest.fixture
def ended() -> Iterator[list[int]]:
    """Signals that came through to the server's own handler."""
    arrived: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: arrived.append(number))
    yield arrived
    signal.signal(signal.SIGTERM, previous)


@contextlib.asynccontextmanager
async def attending(attendance: Attendance) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(attendance.attend())
    await asyncio.sleep(0)
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until_any(arrived: list[int]) -> None:
    async with asyncio.timeout(20):
        while not arrived:
            await asyncio.sleep(0.01)


async def test_the_signal_arrives_when_the_last_has_left(ended: list[int]) -> None:
    attendance = Attendance()
    with ending_last(attendance, limit_s=60):
        async with attending(attendance):
            async with attending(attendance):
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.sleep(2 * LINGER_S)
                assert ended == []
            await asyncio.sleep(2 * LINGER_S)
            assert ended == []
        await until_any(ended)
    assert ended == [signal.SIGTERM]


async def test_who_comes_again_at_once_was_never_away(ended: list[int]) -> None:
    attendance = Attendance()
    with ending_last(attendance, limit_s=60):
        async with attending(attendance):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(LINGER_S)
        async with attending(attendance):
            await asyncio.sleep(2 * LINGER_S)
            assert ended == []
        await until_any(ended)


async def test_it_does_not_wait_longer_than_it_may_and_lets_everybody_go(ended: list[int]) -> None:
    attendance = Attendance()
    with ending_last(attendance, limit_s=0.1):
        async with attending(attendance) as task:
            os.kill(os.getpid(), signal.SIGTERM)
            async with asyncio.timeout(20):
                await task
    assert ended == [signal.SIGTERM]


async def test_a_second_signal_is_obeyed_at_once(ended: list[int]) -> None:
    attendance = Attendance()
    with ending_last(attendance, limit_s=60):
        async with attending(attendance):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.05)
            os.kill(os.getpid(), signal.SIGTERM)
            await until_any(ended)


async def test_handlers_are_put_back(ended: list[int]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ending_last(Attendance(), limit_s=60):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
