"""From a model's row to the BentoML service that runs it.

A runner knows nothing of requests, caching or files: sequences in, one large array out, an error for each
sequence that failed.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import bentoml
import numpy as np
from bentoml.exceptions import ServiceUnavailable
from bentoml.validators import ContentType

from models import checkpoints
from models.batcher import Batcher, Limits, Outcome
from models.catalogue import Model
from models.configs import CheckpointError
from models.cores import usable_cores
from models.departures import EndForWhoLeft
from models.failures import NoDevice, NotLoaded, QueueFull
from models.memory import give_freed_memory_back, keep_freed_memory
from models.schedule import Priority
from models.text.model import TextModel
from models.text.settings import TextSettings
from models.wire import encode_refusal, encode_reply

if TYPE_CHECKING:
    from models.backends.choice import Precision
    from models.engine import Engine
    from models.text.engine import TextEngine

EngineT = TypeVar("EngineT", bound="Engine | TextEngine")

logger = logging.getLogger(__name__)

QUEUE_BATCHES = 256  # full batches that may wait, unless the deployment says otherwise
LOAD_AGAIN_S = 60.0
TEXT_CALLERS = 2  # batches of texts that a device is given at a time
EXIT_AFTER_S = 0.5  # in which those who are told that no device is left hear of it


@dataclass(frozen=True)
class RunnerOptions:
    """What a deployment decides about its runners.

    precision: of the products. use_kernels: whether our own kernels may run where the processor allows.
    batch_tokens: cost of a batch at most; None: what suits the device. batch_items: sequences of a batch at most;
    None: as many as fit. batch_wait_s: for which a free device waits for company. queue_tokens: cost of what
    may wait; None: QUEUE_BATCHES full batches. num_gpus: GPUs that BentoML reserves for each runner; 0 lets it use
    all that it sees. timeout_s: of one call. text: about text models alone.
    """

    precision: Precision
    use_kernels: bool
    batch_tokens: int | None
    batch_items: int | None
    batch_wait_s: float
    queue_tokens: int | None
    num_gpus: int
    timeout_s: float
    text: TextSettings = field(default_factory=TextSettings)

    def limits(self, budget: int) -> Limits:
        """Of the batcher; `budget` is what suits the device."""
        budget = self.batch_tokens or budget
        return Limits(
            budget=budget,
            max_items=self.batch_items or sys.maxsize,
            max_wait_s=self.batch_wait_s,
            max_queue_cost=self.queue_tokens or QUEUE_BATCHES * budget,
        )


def make_runner(model: Model | TextModel, tag: bentoml.Tag, options: RunnerOptions) -> bentoml.Service[Any]:
    """The BentoML service `runner_NAME` for a model of the store: one replica per GPU, or the CPU."""

    class Runner:
        checkpoint = bentoml.models.BentoModel(tag)

        def __init__(self) -> None:
            self.failure: str | None = None
            self.reader = ThreadPoolExecutor(1, thread_name_prefix="reader")
            self._load()

        def _load(self) -> None:
            """Has everything ready. A model that cannot be loaded says so when it is asked, and is tried again."""
            started = time.perf_counter()
            try:
                # In a thread that ends: were its OpenMP threads still there beside those of the device's thread,
                # more than cores, none would wait awake for the next operation, and 5% of the time be lost
                with ThreadPoolExecutor(1) as loader:
                    self.engines = loader.submit(self._load_engines, Path(self.checkpoint.path)).result()
            except Exception as error:
                logger.exception("%s cannot be loaded; it is tried again in %g s", model.name, LOAD_AGAIN_S)
                self.failure = f"{model.name} cannot be loaded: {error}"
                # What is wrong with a file may be mended; a device that fails needs a new process
                retry = self._load if isinstance(error, CheckpointError) else functools.partial(os._exit, 1)
                again = threading.Timer(LOAD_AGAIN_S, retry)
                again.daemon = True
                again.start()
                return
            self.load_s = time.perf_counter() - started
            first = self.engines[0]
            self.batcher: Batcher[Any, np.ndarray] = Batcher(
                [engine.embed for engine in self.engines],
                cost=first.cost,
                limits=options.limits(first.budget),
                lingers=first.lingers,
                num_callers=first.num_callers,
                on_last_loss=lambda: exit_soon(model),
            )
            self.failure = None

        @staticmethod
        def _load_engines(folder: Path) -> Sequence[Any]:
            if isinstance(model, TextModel):
                return load_text_engines(folder, model, options)
            return load_engines(folder, model, options)

        @bentoml.api
        async def embed(
            self,
            sequences: list[Any],
            form: dict[str, Any],
            timeout_s: float | None = None,
            priority: Priority = "interactive",
            is_admitted: bool = False,
        ) -> Annotated[bytes, ContentType("application/octet-stream")]:
            """Embeddings of sequences, or why there are none, as models/wire.py writes them.

            sequences: cleaned proteins, or what the text model reads. form: what is wanted of each, the further
            arguments of the engine's `items`. timeout_s, priority, is_admitted: as models/batcher.py has them.
            """
            if self.failure is not None:
                return encode_refusal(NotLoaded(self.failure))
            first = self.engines[0]
            read = functools.partial(first.items, sequences, **form)
            if isinstance(model, TextModel):  # tokenised off the event loop, by one thread
                items = await asyncio.get_running_loop().run_in_executor(self.reader, read)
            else:
                items = read()
            good = [item for item in items if not isinstance(item, Exception)]
            try:
                outcomes = iter(await self.batcher.run(good, priority, timeout_s, is_admitted))
            except (QueueFull, NoDevice, TimeoutError) as error:
                return encode_refusal(error)
            answers = [Outcome(item) if isinstance(item, Exception) else next(outcomes) for item in items]
            return encode_reply(
                [answer.result for answer in answers],
                first.dim,
                form.get("dtype", "float32"),
                first.choice.precision,
                [None if a.device is None else str(self.engines[a.device].device) for a in answers],
                [0 if isinstance(item, Exception) else first.num_tokens(item) for item in items],
            )

        @bentoml.api
        async def status(self) -> dict[str, Any]:
            """What runs here: tag, devices, precision and why, the model's facts, the batcher's counters.

            Raises:
                ServiceUnavailable: no device is left.
            """
            if self.failure is not None:
                return {"tag": str(tag), "failure": self.failure}
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
                "facts": engine.facts(),
                "batcher": statistics,
            }

        @bentoml.on_shutdown
        async def close(self) -> None:
            if self.failure is None:
                await self.batcher.close()

    Runner.__name__ = Runner.__qualname__ = model.runner
    resources = {"gpu": options.num_gpus} if options.num_gpus else {}
    service = bentoml.service(
        name=model.runner,
        workers=1,
        resources=resources,
        traffic={"timeout": options.timeout_s},
        logging={"access": {"enabled": False}},  # the gateway logs the request
    )(Runner)
    service.add_asgi_middleware(EndForWhoLeft)
    return service


def fault_of(model: Model, stored: bentoml.Model) -> str | None:
    """Why a stored checkpoint is not what the catalogue says, in one line; None if it is. Reads headers alone."""
    try:
        checkpoints.verify(Path(stored.path), model)
    except CheckpointError as error:
        return f"{stored.tag}: {error}"
    return None


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


def exit_soon(model: Model | TextModel) -> None:
    """Ends this process, which has no device left; BentoML starts another, in which they may be well again."""
    logger.critical("%s has lost its last device; the runner ends and is started anew", model.name)
    asyncio.get_running_loop().call_later(EXIT_AFTER_S, os._exit, 1)
