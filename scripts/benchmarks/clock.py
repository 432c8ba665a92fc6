"""Seconds of a run on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def timed(run: Callable[[], Result], device: str) -> tuple[Result, float]:
    """What a run gives, and its seconds: from an idle device until the device has done what it was given."""
    _wait(device)
    started = time.perf_counter()
    result = run()
    _wait(device)
    return result, time.perf_counter() - started


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)
