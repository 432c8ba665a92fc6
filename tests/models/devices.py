"""Devices that double numbers, in threads as real ones. An item's cost is the item itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from models.batcher import Batcher, Limits
from models.crew import Device

# For what must happen; nothing waits as long unless a test fails
DEADLINE_S = 20

Numbers = Batcher[int, int]


def double(items: Sequence[int]) -> list[int | Exception]:
    return [2 * item for item in items]


class Recorder:
    """A device that doubles, and keeps the batches it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(items))
        return double(items)


class Held(Recorder):
    """A device that doubles each batch only when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self._started = threading.Semaphore(0)
        self._allowed = threading.Semaphore(0)

    def __call__(self, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(items))
        self._started.release()
        assert self._allowed.acquire(timeout=DEADLINE_S)
        return double(items)

    async def started(self) -> None:
        """Waits until the device holds a batch that was not waited for yet."""
        assert await asyncio.to_thread(self._started.acquire, timeout=DEADLINE_S)

    def let_go(self, num_batches: int = 1) -> None:
        self._allowed.release(num_batches)


async def settle() -> None:
    """Lets every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def results(batcher: Numbers, items: Sequence[int]) -> list[int | Exception]:
    """What `run` gives, without the devices."""
    return [outcome.result for outcome in await batcher.run(items)]


@asynccontextmanager
async def running(
    *devices: Device[int, int],
    budget: int = 10,
    lingers: Callable[[int], bool] = lambda _: False,
    linger_s: float = 1.0,
    num_callers: int = 1,
) -> AsyncIterator[Numbers]:
    limits = Limits(budget, linger_s=linger_s)
    batcher: Numbers = Batcher(devices, lambda item: item, limits, lingers, num_callers)
    async with asyncio.timeout(DEADLINE_S):
        yield batcher
    await batcher.close()
