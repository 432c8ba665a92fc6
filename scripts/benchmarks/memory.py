"""Memory that a run needs above the weights, in a process that has done nothing else."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec

import torch

P = ParamSpec("P")


class Meter:
    """Bytes above those in use when it was made, at their peak.

    On a CPU those of the process (Linux: VmHWM above VmRSS), with what the allocator has given back to the system
    first, so that freed memory hides nothing; on CUDA those of torch's allocator.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        release_freed_memory()
        if device == "cpu":
            Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is in use
            self._start = _status_bytes("VmRSS")
        else:
            torch.cuda.reset_peak_memory_stats(device)
            self._start = torch.cuda.memory_allocated(device)

    def peak_bytes(self) -> int:
        is_cpu = self._device == "cpu"
        return (_status_bytes("VmHWM") if is_cpu else torch.cuda.max_memory_allocated(self._device)) - self._start


def release_freed_memory() -> None:
    """What was freed goes back to the system, on the host (glibc) and on the device."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    torch.cuda.empty_cache()


def in_fresh_process(measure: Callable[P, int], *arguments: P.args, **named: P.kwargs) -> int:
    """What a function of a module gives in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, *arguments, **named).result()


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
