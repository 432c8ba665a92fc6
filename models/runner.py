"""From a catalogue row to the BentoML service that runs it.

A runner knows nothing of requests, caching or files: sequences in, one large array out, an error for each
sequence that failed.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import bentoml
import numpy as np
from bentoml.validators import ContentType

from models import checkpoints
from models.batcher import Batcher
from models.catalogue import Model
from models.configs import CheckpointError
from models.cores import usable_cores
from models.memory import give_freed_memory_back, keep_freed_memory
from models.wire import encode_reply

if TYPE_CHECKING:
    from models.backends.choice import Precision
    from models.engine import Engine, Item

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunnerOptions:
    """What a deployment decides about its runners.

    precision: of the products. use_kernels: whether our own kernels may run where the processor allows.
    batch_tokens: cost of a batch at most; None: what suits the device. num_gpus: GPUs that BentoML reserves for
    each runner; 0 lets it use all that it sees. timeout_s: of one call.
    """

    precision: Precision
    use_kernels: bool
    batch_tokens: int | None
    num_gpus: int
    timeout_s: float


def make_runner(model: Model, tag: bentoml.Tag, options: RunnerOptions) -> bentoml.Service[Any]:
    """The BentoML service `runner_NAME` for a model of the store: one replica per GPU, or the CPU."""

    class Runner:
        checkpoint = bentoml.models.BentoModel(tag)

        def __init__(self) -> None:
            started = time.perf_counter()
            self.engines = load_engines(Path(self.checkpoint.path), model, options)
            self.load_s = time.perf_counter() - started
            self.batcher: Batcher[Item, np.ndarray] = Batcher(
                [functools.partial(embed_or_exit, e) for e in self.engines for _ in range(e.num_callers)],
                cost=self.engines[0].cost,
                budget=options.batch_tokens or self.engines[0].budget,
                lingers=lambda item: item.pooled,  # a pooled result is a few kilobytes
            )

        @bentoml.on_deployment
        @staticmethod
        def check() -> None:
            verify_stored(model, tag)

        @bentoml.api
        async def embed(
            self, sequences: list[str], pooled: bool, dtype: Literal["float16", "float32"]
        ) -> Annotated[bytes, ContentType("application/octet-stream")]:
            """Embeddings of cleaned sequences, as models/wire.py writes them."""
            from models.engine import Item

            items = [Item(sequence, pooled, dtype) for sequence in sequences]
            results = await self.batcher.run(items)
            return encode_reply(results, model.dim, dtype, self.engines[0].choice.precision)

        @bentoml.api
        async def status(self) -> dict[str, Any]:
            """What runs here: tag, device, precision and why, and the batcher's counters."""
            engine = self.engines[0]
            return {
                "tag": str(tag),
                "devices": [str(engine.device) for engine in self.engines],
                "precision": engine.choice.precision,
                "precision_reason": engine.choice.precision_reason,
                "backend": engine.choice.backend_reason,
                "batch_tokens": self.batcher.budget,
                "load_s": self.load_s,
                "batcher": asdict(self.batcher.statistics),
            }

        @bentoml.on_shutdown
        async def close(self) -> None:
            await self.batcher.close()

    Runner.__name__ = Runner.__qualname__ = model.runner
    resources = {"gpu": options.num_gpus} if options.num_gpus else {}
    return bentoml.service(
        name=model.runner, workers=1, resources=resources, traffic={"timeout": options.timeout_s}
    )(Runner)


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


def embed_or_exit(engine: Engine, items: Sequence[Item]) -> Sequence[np.ndarray | Exception]:
    """The engine's answer. A lost device ends the process, which BentoML then starts anew."""
    from models.engine import DeviceLost

    try:
        return engine.embed(items)
    except DeviceLost:
        logger.critical("%s has lost its device; the runner ends", engine.model.name, exc_info=True)
        os._exit(1)
