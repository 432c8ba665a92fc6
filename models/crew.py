"""Who calls the devices: threads for each, on all of a device or on equal shares of it, side by side."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from models.schedule import Schedule
from models.statistics import DeviceStatistics

ItemT = TypeVar("ItemT", bound=Hashable)
ResultT = TypeVar("ResultT")

# A blocking function: one result an item, in order; an item that fails gets its exception.
# Raises DeviceLost or OutOfMemory where nothing of the batch was computed
Device = Callable[[Sequence[ItemT]], Sequence[ResultT | Exception]]


class Crew(Generic[ItemT, ResultT]):
    """The callers of every device.

    A device that divides computes a batch in each of its shares while more waits than one batch holds, and what
    waits alone on all of it.

    Args:
        devices: each is called from threads of its own.
        num_callers: batches that a device is given at a time.
        shares: for each device that divides, the function of one of its `num_callers` equal shares, which are
            called from threads of their own; None: they do not divide.
        on_free: called when a batch that had all of a device that divides is done.
    """

    def __init__(
        self,
        devices: Sequence[Device[ItemT, ResultT]],
        num_callers: int,
        shares: Sequence[Device[ItemT, ResultT]] | None,
        on_free: Callable[[], None],
    ) -> None:
        self.num_callers = num_callers
        self._devices = devices
        self._shares = shares
        self._on_free = on_free
        num_whole = len(devices) * (1 if shares else num_callers)
        self._threads = ThreadPoolExecutor(num_whole, thread_name_prefix="device")
        self._share_threads = ThreadPoolExecutor(len(devices) * num_callers, thread_name_prefix="share")
        self._is_taken = [False] * len(devices)

    def is_taken(self, number: int) -> bool:
        """Whether one batch has all of a device that would divide."""
        return self._is_taken[number]

    def room(self, device: DeviceStatistics, queue: Schedule[ItemT]) -> tuple[int, bool]:
        """What a caller may take now, and whether as one of the device's shares.

        Shares have an equal part of what waits, so that they end together.
        """
        is_lone = queue.size == 1 or queue.cost <= device.budget
        if self._shares is None or (is_lone and not device.inflight_batches):
            return device.budget, False
        return math.ceil(min(device.budget, queue.cost) / self.num_callers), True

    async def compute(self, number: int, items: Sequence[ItemT], is_share: bool) -> Sequence[ResultT | Exception]:
        """A batch on a device, in one of its threads. Raises whatever the device does."""
        loop = asyncio.get_running_loop()
        if is_share:
            assert self._shares is not None
            return await loop.run_in_executor(self._share_threads, self._shares[number], items)
        self._is_taken[number] = self._shares is not None
        try:
            return await loop.run_in_executor(self._threads, self._devices[number], items)
        finally:
            if self._is_taken[number]:
                self._is_taken[number] = False
                self._on_free()

    def close(self) -> None:
        """Ends the threads; they must be idle."""
        self._threads.shutdown()
        self._share_threads.shutdown()
