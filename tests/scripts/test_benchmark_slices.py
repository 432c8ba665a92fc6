"""Two that take slices of time: never at once, and both go on afterwards."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from scripts.benchmarks.slices import Side, in_slices

SLICE_S = 0.1
DEADLINE_S = 60.0
NUM_MARKS = 1000  # of a busy process, 1 ms apart at least: one second's worth
# Writes the time, which is that of all processes, whenever a millisecond is over
BUSY = """
import sys, time
last = 0
while True:
    now = time.monotonic()
    if now - last >= 0.001:
        print(now, flush=True)
        last = now
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], tuple[int, Path]]]:
    """Starts a busy process; gives its number, and the file that it writes."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one(name: str) -> tuple[int, Path]:
        path = tmp_path / name
        with path.open("wb") as file:
            started.append(subprocess.Popen([sys.executable, "-c", BUSY], stdout=file))
        wait_for_marks(path, 1)
        return started[-1].pid, path

    yield start_one
    for process in started:
        process.kill()
        process.wait()


def marks(path: Path) -> list[float]:
    return [float(line) for line in path.read_text().splitlines()]


def wait_for_marks(path: Path, num: int = NUM_MARKS) -> tuple[int, int]:
    """Marks that were there before, and those that are there now: so many more."""
    before = now = len(marks(path))
    deadline = time.monotonic() + DEADLINE_S
    while now < before + num:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        now = len(marks(path))
    return before, now


def test_one_is_stopped_while_the_other_goes_on(start: Callable[[str], tuple[int, Path]]) -> None:
    sides, paths = [], []
    for name in ("one", "other"):
        pid, path = start(name)
        sides.append(Side(partial(wait_for_marks, path), pid))
        paths.append(path)
    done = in_slices(sides, SLICE_S)
    for (before, now), seconds in done:
        assert now - before >= NUM_MARKS
        assert seconds > 0.9 * NUM_MARKS * 0.001  # whoever goes on again makes a mark at once
    first, second = (marks(path)[slice(*found)] for path, (found, _) in zip(paths, done, strict=True))
    both = sorted([(mark, 0) for mark in first] + [(mark, 1) for mark in second])
    num_changes = sum(one[1] != next_one[1] for one, next_one in pairwise(both))
    num_slices = sum(seconds for _, seconds in done) / SLICE_S
    assert 2 < num_changes <= num_slices + 2  # at once, they would change with every mark
    for side in sides:
        assert psutil.Process(side.pid).status() != psutil.STATUS_STOPPED


def test_both_go_on_where_one_fails(start: Callable[[str], tuple[int, Path]]) -> None:
    def fail() -> tuple[int, int]:
        raise OSError("broken")

    (bad, _), (good, path) = start("bad"), start("good")
    with pytest.raises(OSError, match="broken"):
        in_slices([Side(fail, bad), Side(partial(wait_for_marks, path), good)], SLICE_S)
    for pid in (bad, good):
        assert psutil.Process(pid).status() != psutil.STATUS_STOPPED
