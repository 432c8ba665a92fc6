"""How the work of a runner can fail as a whole, in types that cross from the device to the gateway.

What fails for one sequence alone is no exception: it is that sequence's result.
"""

from __future__ import annotations


class DeviceLost(Exception):
    """The device answers nothing any more; only a new process has a chance."""


class OutOfMemory(Exception):
    """The device has not enough memory for the whole batch; smaller ones may fit."""


class NoDevice(Exception):
    """All devices are lost: nothing is computed until the process is started anew."""


class NotLoaded(Exception):
    """The model could not be loaded, for the reason that is given; it is tried again now and then."""


class TooLate(Exception):
    """What waits takes longer than this caller does. `retry_after_s`: seconds after which it might not."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"too much is waiting for an answer in time; try again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class QueueFull(Exception):
    """More waits than may. `retry_after_s`: seconds after which it will have been worked off."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"too much is waiting; try again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s
