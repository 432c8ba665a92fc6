"""Where and with what a figure was measured."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from models.cores import usable_cores
from models.memory import give_freed_memory_back, keep_freed_memory

_PACKAGES = ("torch", "transformers", "numpy", "fair-esm")


def prepare() -> None:
    """This process gets the cores that a runner has, and transformers is quiet."""
    torch.set_num_threads(usable_cores())
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@contextmanager
def loading() -> Iterator[None]:
    """Weights are loaded as a runner loads them; freed memory is kept from then on. Peers have it too."""
    give_freed_memory_back()
    try:
        yield
    finally:
        keep_freed_memory()


def describe(device: str) -> dict[str, Any]:
    """What a JSON line says of the machine: commit, versions, processor, device, threads."""
    return {
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "cpu": cpu_name(),
        "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(device),
        "num_threads": torch.get_num_threads(),
    }


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name for itself."""
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None
