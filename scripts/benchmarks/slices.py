"""Two that compute on the same cores, in slices of time: the processes of one are stopped while the other goes on.

From one turn of some seconds to the next, the speed of a shared machine drifts by more than what is to be told
apart. Slices of less than a second share every drift.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

import psutil

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Side(Generic[ResultT]):
    """What is to be done. pid: of the first of the processes that do it; all below it are stopped with it."""

    work: Callable[[], ResultT]
    pid: int

    def processes(self) -> list[psutil.Process]:
        first = psutil.Process(self.pid)
        return [first, *first.children(recursive=True)]


def in_slices(sides: Sequence[Side[ResultT]], slice_s: float) -> list[tuple[ResultT, float]]:
    """Does the work of all sides, each in a thread of this process, which is never stopped. All go on afterwards.

    Returns:
        Of each side the result, and the seconds for which its processes were let go on until it was there.

    Raises:
        Whatever the work of a side does, once everything is done.
    """
    seconds = [0.0] * len(sides)
    pool = ThreadPoolExecutor(len(sides))
    try:
        with _stopped(sides) as groups:
            works = [pool.submit(side.work) for side in sides]
            while not all(work.done() for work in works):
                for number, (work, group) in enumerate(zip(works, groups, strict=True)):
                    if work.done():
                        continue
                    _each(group, psutil.Process.resume)
                    began = time.perf_counter()
                    wait([work], slice_s)
                    seconds[number] += time.perf_counter() - began
                    _each(group, psutil.Process.suspend)
    finally:
        pool.shutdown(wait=False)  # whoever interrupts this is not kept: the work ends with the processes
    return [(work.result(), spent) for work, spent in zip(works, seconds, strict=True)]


@contextlib.contextmanager
def _stopped(sides: Sequence[Side[ResultT]]) -> Iterator[list[list[psutil.Process]]]:
    """The processes of each side, which are stopped now and go on after the `with`, however it ends."""
    groups = [side.processes() for side in sides]
    try:
        for group in groups:
            _each(group, psutil.Process.suspend)
        yield groups
    finally:
        for group in groups:
            _each(group, psutil.Process.resume)


def _each(group: Sequence[psutil.Process], do: Callable[[psutil.Process], None]) -> None:
    for process in group:
        with contextlib.suppress(psutil.NoSuchProcess):
            do(process)
