"""From a catalogue row to the BentoML service that runs it.

A runner knows nothing of requests, caching or files: sequences in, one large array out, an error for each
sequence that failed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import bentoml
import numpy as np
from bentoml.exceptions import ServiceUnavailable
from bentoml.validators import ContentType

from models import checkpoints
from models.batcher import Batcher, Limits
from models.catalogue import Model
from models.configs import CheckpointError
from models.cores import usable_cores
from models.departures import EndForWhoLeft
from models.failures import NoDevice, QueueFull
from models.memory import give_freed_memory_back, keep_freed_memory
from models.schedule import Priority
from models.wire import encode_refusal, encode_reply

if TYPE_CHECKING:
    from models.backends.choice import Precision
    from models.engine import Engine, Item

logger = logging.getLogger(__name__)

QUEUE_BATCHES = 256  # full batches that may wait, unless the deployment says otherwise
EXIT_AFTER_S = 0.5  # in which those who are told that no device is left hear of it


@dataclass(frozen=True)
class RunnerOptions:
    """What a deployment decides about its runners.

    precision: of the products. use_kernels: whether our own kernels may run where the processor allows.
    batch_tokens: cost of a batch at most; None: what suits the device. batch_items: sequences of a batch at most;
    None: as many as fit. batch_wait_s: for which a free device waits for company. queue_tokens: cost of what
    may wait; None: QUEUE_BATCHES full batches. num_gpus: GPUs that BentoML reserves for each runner; 0 lets it use
    all that it sees. timeout_s: of one call.
    """

    precision: Precision
    use_kernels: bool
    batch_tokens: int | None
    batch_items: int | None
    batch_wait_s: float
    queue_tokens: int | None
    num_gpus: int
    timeout_s: float

    def limits(self, budget: int) -> Limits:
        """Of the batcher; `budget` is what suits the device."""
        budget = self.batch_tokens or budget
        return Limits(
            budget=budget,
            max_items=self.batch_items or sys.maxsize,
            max_wait_s=self.batch_wait_s,
            max_queue_cost=self.queue_tokens or QUEUE_BATCHES * budget,
        )


def make_runner(model: Model, tag: bentoml.Tag, options: RunnerOptions) -> bentoml.Service[Any]:
    """The BentoML service `runner_NAME` for a model of the store: one replica per GPU, or the CPU."""

    class Runner:
        checkpoint = bentoml.models.BentoModel(tag)

        def __init__(self) -> None:
            started = time.perf_counter()
            # In a thread that ends: were its OpenMP threads still there beside those of the device's thread, more
            # than cores, none would wait awake for the next operation, and 5% of the time be lost
            with ThreadPoolExecutor(1) as loader:
                self.engines = loader.submit(load_engines, Path(self.checkpoint.path), model, options).result()
            self.load_s = time.perf_counter() - started
            self.batcher: Batcher[Item, np.ndarray] = Batcher(
                [engine.embed for engine in self.engines],
                cost=self.engines[0].cost,
                limits=options.limits(self.engines[0].budget),
                lingers=lambda item: item.pooled,  # a pooled result is a few kilobytes
                num_callers=self.engines[0].num_callers,
                on_last_loss=lambda: exit_soon(model),
            )

        @bentoml.on_deployment
        @staticmethod
        def check() -> None:
            verify_stored(model, tag)

        @bentoml.api
        async def embed(
            self,
            sequences: list[str],
            pooled: bool,
            dtype: Literal["float16", "float32"],
            timeout_s: float | None = None,
            priority: Priority = "interactive",
            is_admitted: bool = False,
        ) -> Annotated[bytes, ContentType("application/octet-stream")]:
            """Embeddings of cleaned sequences, or why there are none, as models/wire.py writes them.

            timeout_s, priority, is_admitted: as models/batcher.py understands them.
            """
            from models.engine import Item

            items = [Item(sequence, pooled, dtype) for sequence in sequences]
            try:
                outcomes = await self.batcher.run(items, priority, timeout_s, is_admitted)
            except (QueueFull, NoDevice, TimeoutError) as error:
                return encode_refusal(error)
            devices = [None if o.device is None else str(self.engines[o.device].device) for o in outcomes]
            precision = self.engines[0].choice.precision
            return encode_reply([o.result for o in outcomes], model.dim, dtype, precision, devices)

        @bentoml.api
        async def status(self) -> dict[str, Any]:
            """What runs here: tag, devices, precision and why, and the batcher's counters.

            Raises:
                ServiceUnavailable: no device is left.
            """
            engine = self.engines[0]
            statistics = asdict(self.batcher.statistics)
            per_device = statistics.pop("devices")
            if all(device["is_lost"] for device in per_device):
                raise ServiceUnavailable("no device is left")
            return {
                "tag": str(tag),
                "devices": [str(engine.device) for engine in self.engines],
                "per_device": [
                    {"name": str(engine.device), **counters}
                    for engine, counters in zip(self.engines, per_device, strict=True)
                ],
                "precision": engine.choice.precision,
                "precision_reason": engine.choice.precision_reason,
                "backend": engine.choice.backend_reason,
                "batch_tokens": self.batcher.limits.budget,
                "load_s": self.load_s,
                "batcher": statistics,
            }

        @bentoml.on_shutdown
        async def close(self) -> None:
            await self.batcher.close()

    Runner.__name__ = Runner.__qualname__ = model.runner
    resources = {"gpu": options.num_gpus} if options.num_gpus else {}
    service = bentoml.service(
        name=model.runner, workers=1, resources=resources, traffic={"timeout": options.timeout_s}
    )(Runner)
    service.add_asgi_middleware(EndForWhoLeft)
    return service


def verify_stored(model: Model, tag: bentoml.Tag) -> None:
    """Stops the start with one line if the stored checkpoint is not what the catalogue says."""
    try:
        checkpoints.verify(Path(bentoml.models.get(tag).path), model)
    except CheckpointError as error:
        raise SystemExit(f"{tag}: {error}") from None


def load_engines(folder: Path, model: Model, options: RunnerOptions) -> list[Engine]:
    """One replica for each GPU that this process sees, or one on the CPU with all cores it may use.

    Raises:
        RuntimeError: GPUs were reserved, and others are seen: never a silent fall back to the CPU.
    """
    import torch

    from models.backends.choice import choose
    from models.engine import Engine

    num_gpus = torch.cuda.device_count()
    if options.num_gpus and num_gpus != options.num_gpus:
        raise RuntimeError(f"RUNNER_GPUS reserves {options.num_gpus} GPUs, {model.name} sees {num_gpus}")
    give_freed_memory_back()
    torch.set_num_threads(usable_cores())
    devices = [f"cuda:{i}" for i in range(num_gpus)] or ["cpu"]
    chosen = [choose(torch.device(name), model.family, options.precision, options.use_kernels) for name in devices]
    engines = [Engine(folder, model, name, choice=choice) for name, choice in zip(devices, chosen, strict=True)]
    keep_freed_memory()
    for engine in engines:
        logger.info(
            "%s on %s: %s (%s); %s",
            *(model.name, engine.device, engine.choice.precision),
            *(engine.choice.precision_reason, engine.choice.backend_reason),
        )
    return engines


def exit_soon(model: Model) -> None:
    """Ends this process, which has no device left; BentoML starts another, in which they may be well again."""
    logger.critical("%s has lost its last device; the runner ends and is started anew", model.name)
    asyncio.get_running_loop().call_later(EXIT_AFTER_S, os._exit, 1)
