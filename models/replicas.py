"""Engines on the devices that a process sees, one replica on each, and the memory of those devices."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from models.catalogue import Model
from models.cores import usable_cores
from models.memory import give_freed_memory_back, keep_freed_memory
from models.statistics import DeviceStatistics
from models.text.model import TextModel

if TYPE_CHECKING:
    from torch import device as Device

    from models.engine import Engine
    from models.runner import RunnerOptions
    from models.text.engine import TextEngine

EngineT = TypeVar("EngineT", bound="Engine | TextEngine")

logger = logging.getLogger(__name__)

TEXT_CALLERS = 2  # batches of texts that a device is given at a time


def load_engines(folder: Path, model: Model, options: RunnerOptions) -> list[Engine]:
    """One replica of a protein model for each GPU that this process sees, or one on the CPU.

    Raises:
        RuntimeError: GPUs were reserved, and others are seen: never a silent fall back to the CPU.
        CheckpointError: the folder does not hold the model.
    """
    import torch

    from models.backends.choice import choose
    from models.engine import Engine

    def load(device: str) -> Engine:
        choice = choose(torch.device(device), model.family, options.precision, options.use_kernels)
        return Engine(folder, model, device, choice=choice)

    return _on_devices(load, model.name, options, num_callers=1)


def load_text_engines(folder: Path, model: TextModel, options: RunnerOptions) -> list[TextEngine]:
    """The same of a text model. Two batches go side by side, on the CPU each on half of the cores: of a pass of a
    small model half is overhead (docs/decisions/0021-text-models.md)."""
    from models.text.engine import TextEngine

    num_callers = min(TEXT_CALLERS, usable_cores())

    def load(device: str) -> TextEngine:
        return TextEngine(folder, model, device, options.text, num_callers)

    return _on_devices(load, model.name, options, num_callers)


def _on_devices(
    load: Callable[[str], EngineT], name: str, options: RunnerOptions, num_callers: int
) -> list[EngineT]:
    """An engine on each GPU, or one on the CPU whose callers share the cores that it may use."""
    import torch

    num_gpus = torch.cuda.device_count()
    if options.num_gpus and num_gpus != options.num_gpus:
        raise RuntimeError(f"RUNNER_GPUS reserves {options.num_gpus} GPUs, {name} sees {num_gpus}")
    give_freed_memory_back()
    torch.set_num_threads(usable_cores() // num_callers)
    engines = [load(device) for device in [f"cuda:{i}" for i in range(num_gpus)] or ["cpu"]]
    keep_freed_memory()
    for engine in engines:
        choice = engine.choice
        logger.info(
            "%s on %s: %s (%s); %s",
            *(name, engine.device, choice.precision, choice.precision_reason, choice.backend_reason),
        )
    return engines


def shares(engines: Sequence[Any]) -> list[Callable[[Sequence[Any]], Any]] | None:
    """For models/batcher.py: the engines that divide, on a share of their cores; None where they do not."""
    return [engine.embed_share for engine in engines] if engines[0].divides else None


def gpu_bytes(devices: Iterable[Device]) -> int:
    """That this process holds on GPUs."""
    import torch

    return sum(torch.cuda.memory_allocated(device) for device in devices)


def gpu_memory(engines: Sequence[Any], devices: Sequence[DeviceStatistics]) -> dict[str, tuple[int, int]]:
    """Bytes that are used on each GPU, by whomever, and that it has. A GPU that is lost does not say."""
    import torch

    found: dict[str, tuple[int, int]] = {}
    for engine, device in zip(engines, devices, strict=True):
        if engine.device.type == "cuda" and not device.is_lost:
            try:
                free, total = torch.cuda.mem_get_info(engine.device)
            except RuntimeError as error:  # lost, and no batch has met that yet
                logger.warning("%s does not say what memory it has: %s", engine.device, error)
            else:
                found[str(engine.device)] = (total - free, total)
    return found
