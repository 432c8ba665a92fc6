"""Who calls the devices: threads for each, on all of a device or on equal shares of it, side by side."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Literal, TypeVar

from models.schedule import Schedule
from models.statistics import DeviceStatistics

ItemT = TypeVar("ItemT", bound=Hashable)
ResultT = TypeVar("ResultT")

# A blocking function: one result an item, in order; an item that fails gets its exception.
# Raises DeviceLost or OutOfMemory where nothing of the batch was computed
Device = Callable[[Sequence[ItemT]], Sequence[ResultT | Exception]]

# What a batch has of a device: nobody is beside it; a part of the cores; or one of several places on all of it
Part = Literal["all", "share", "place"]


class Crew(Generic[ItemT, ResultT]):
    """The callers of every device.

    A device that divides computes a batch in each of its shares while more waits than one batch holds, and what
    waits alone on all of it. What wants a device to itself gets all of it, once everything else there is done.

    Args:
        devices: each is called from threads of its own.
        num_callers: batches that a device is given at a time.
        shares: for each device that divides, the function of one of its `num_callers` equal shares, which are
            called from threads of their own; None: they do not divide.
    """

    def __init__(
        self,
        devices: Sequence[Device[ItemT, ResultT]],
        num_callers: int,
        shares: Sequence[Device[ItemT, ResultT]] | None,
    ) -> None:
        self.num_callers = num_callers
        self._devices = devices
        self._shares = shares
        num_whole = len(devices) * (1 if shares else num_callers)
        self._threads = ThreadPoolExecutor(num_whole, thread_name_prefix="device")
        self._share_threads = ThreadPoolExecutor(len(devices) * num_callers, thread_name_prefix="share")
        self._is_taken = [False] * len(devices)

    def must_wait(self, number: int, device: DeviceStatistics, queue: Schedule[ItemT]) -> bool:
        """Whether a batch on the device has to end first: it has all of it, or what goes next is to have that."""
        first = queue.first()
        return self._is_taken[number] or (device.inflight_batches > 0 and first is not None and first.wants_device)

    def room(self, device: DeviceStatistics, queue: Schedule[ItemT]) -> tuple[int, Part]:
        """What a caller that need not wait may take of what does, and which part of the device for it.

        Shares have an equal part of what waits, so that they end together.
        """
        first = queue.first()
        if first is not None and first.wants_device:
            return device.budget, "all"
        if self._shares is None:
            return device.budget, "place"
        is_lone = queue.size == 1 or queue.cost <= device.budget
        if is_lone and not device.inflight_batches:
            return device.budget, "all"
        return math.ceil(min(device.budget, queue.cost) / self.num_callers), "share"

    async def compute(self, number: int, items: Sequence[ItemT], part: Part) -> Sequence[ResultT | Exception]:
        """A batch on a device, in one of its threads. Raises whatever the device does."""
        loop = asyncio.get_running_loop()
        if part == "share":
            assert self._shares is not None
            return await loop.run_in_executor(self._share_threads, self._shares[number], items)
        self._is_taken[number] = part == "all"
        try:
            return await loop.run_in_executor(self._threads, self._devices[number], items)
        finally:
            self._is_taken[number] = False

    def close(self) -> None:
        """Ends the threads; they must be idle."""
        self._threads.shutdown()
        self._share_threads.shutdown()
