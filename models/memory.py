"""What glibc's malloc does with large blocks that are freed. Elsewhere than on glibc nothing happens."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_ACTIVATION = 1 << 30
SMALLEST_WEIGHT = 1 << 20


def give_freed_memory_back() -> None:
    """Blocks of 1 MB and more go back to the system when they are freed: for loading, which needs each once."""
    _set(_M_MMAP_THRESHOLD, SMALLEST_WEIGHT)


def keep_freed_memory() -> None:
    """Freed activations are used again, instead of giving their pages back and faulting them in anew.

    What it is worth: docs/decisions/0010-freed-memory-is-kept.md.
    """
    _set(_M_MMAP_THRESHOLD, LARGEST_ACTIVATION)
    _set(_M_TRIM_THRESHOLD, LARGEST_ACTIVATION)


def _set(parameter: int, value: int) -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # not in every libc
            libc.mallopt(parameter, value)
