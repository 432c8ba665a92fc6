"""From a model's row to the BentoML service that runs it.

A runner knows nothing of requests, caching or files: sequences in, one large array out, an error for each
sequence that failed.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from typing import TYPE_CHECKING, Annotated, Any

import bentoml
import numpy as np
import psutil
from bentoml.exceptions import ServiceUnavailable
from bentoml.validators import ContentType

from models import checkpoints, replicas
from models.attendance import Attendance, ending_last
from models.batcher import Batcher, Limits, Outcome
from models.bodies import JsonAlone
from models.catalogue import Model
from models.configs import CheckpointError
from models.departures import EndForWhoLeft
from models.failures import NoDevice, NotLoaded, QueueFull, TooLate
from models.measures import Status, measures_of_process
from models.schedule import Priority
from models.statistics import Batch
from models.text.model import TextModel
from models.text.settings import TextSettings
from models.tracing import call_span, trace_batches
from models.wire import encode_refusal, encode_reply

if TYPE_CHECKING:
    from models.backends.choice import Precision

logger = logging.getLogger(__name__)

QUEUE_BATCHES = 256  # full batches that may wait, unless the deployment says otherwise
LOAD_AGAIN_S = 60.0
WATCH_EVERY_S = 1.0
HANGS_FOR_GOOD_S = 120.0  # behind the time in which a batch that takes long should be done
_STATUS: dict[type[Exception], Status] = {
    QueueFull: "rejected",
    TooLate: "rejected",
    TimeoutError: "expired",
    NoDevice: "failure",
}
EXIT_AFTER_S = 0.5  # in which those who are told that no device is left hear of it


@dataclass(frozen=True)
class RunnerOptions:
    """What a deployment decides about its runners.

    precision: of the products. use_kernels: whether our own kernels may run where the processor allows.
    batch_tokens: cost of a batch at most; None: what suits the device. batch_items: sequences of a batch at most;
    None: as many as fit. batch_wait_s: for which a free device waits for company. queue_tokens: cost of what
    may wait; None: QUEUE_BATCHES full batches. num_gpus: GPUs that BentoML reserves for each runner; 0 lets it use
    all that it sees. timeout_s: of one call. text: about text models alone. shutdown_s: for which a runner that
    is told to end waits for its gateways. prepare: called first in a runner's process, with its name.
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
    shutdown_s: float = 30.0
    prepare: Callable[[str], None] = lambda _: None

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
            options.prepare(model.runner)
            self.failure: str | None = None
            self.reader = ThreadPoolExecutor(1, thread_name_prefix="reader")
            self._load()

        def _load(self) -> None:
            """Has everything ready. A model that cannot be loaded says so when it is asked, and is tried again."""
            started, memory = time.perf_counter(), psutil.Process().memory_info().rss
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
            gpus = [engine.device for engine in self.engines if engine.device.type == "cuda"]
            grown = replicas.gpu_bytes(gpus) if gpus else psutil.Process().memory_info().rss - memory
            self.batcher: Batcher[Any, np.ndarray] = Batcher(
                [engine.embed for engine in self.engines],
                cost=first.cost,
                limits=options.limits(first.budget),
                lingers=first.lingers,
                num_callers=first.num_callers,
                on_last_loss=lambda: exit_soon(model),
                on_batch=self._note_batch,
                shares=replicas.shares(self.engines),
            )
            self.names = [str(engine.device) for engine in self.engines]
            self.measures = measures_of_process()
            self.measures.note_load(model.name, self.load_s, grown, self.batcher.limits.max_queue_cost)
            self.failure = None

        def _note_batch(self, batch: Batch, items: Sequence[Any], waited_s: float) -> None:
            self.measures.note_batch(model.name, batch, sum(map(self.engines[0].num_tokens, items)), waited_s)

        @staticmethod
        def _load_engines(folder: Path) -> Sequence[Any]:
            if isinstance(model, TextModel):
                return replicas.load_text_engines(folder, model, options)
            return replicas.load_engines(folder, model, options)

        @bentoml.on_startup
        async def begin(self) -> None:
            """On the server's event loop: from now on it outlives its gateways, and says how it is."""
            self.attendance = Attendance()
            self.open = contextlib.ExitStack()
            self.open.enter_context(ending_last(self.attendance, options.shutdown_s))
            self.watch = asyncio.create_task(self._watch())

        async def _watch(self) -> None:
            """Once a second: counters to Prometheus, and whether a device hangs for good."""
            while True:
                await asyncio.sleep(WATCH_EVERY_S)
                if self.failure is not None:
                    continue
                statistics = self.batcher.statistics
                late_s = [device.overdue_s for device in statistics.devices if not device.is_lost]
                if min(late_s, default=0.0) > HANGS_FOR_GOOD_S:
                    logger.critical(
                        "no device of %s gets on with its work; the runner is started anew", model.name
                    )
                    os._exit(1)
                gpus = replicas.gpu_memory(self.engines, statistics.devices)
                self.measures.note(model.name, self.names, statistics, gpus)

        @bentoml.api
        async def attend(self) -> None:
            """Held open by every gateway worker for as long as it may need this runner."""
            await self.attendance.attend()

        @bentoml.api
        async def embed(
            self,
            sequences: list[Any],
            form: dict[str, Any],
            context: bentoml.Context,
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
            first, started = self.engines[0], time.perf_counter()
            read = functools.partial(first.items, sequences, **form)
            with call_span(f"{model.runner}.embed", context.request.headers, len(sequences)):
                if isinstance(model, TextModel):  # tokenised off the event loop, by one thread
                    items = await asyncio.get_running_loop().run_in_executor(self.reader, read)
                else:
                    items = read()
                good = [item for item in items if not isinstance(item, Exception)]
                try:
                    computed = await self.batcher.run(good, priority, timeout_s, is_admitted)
                except (QueueFull, TooLate, NoDevice, TimeoutError) as error:
                    self.measures.note_call(model.name, _STATUS[type(error)], time.perf_counter() - started)
                    return encode_refusal(error)
                trace_batches(computed)
            self.measures.note_call(model.name, "success", time.perf_counter() - started)
            outcomes = iter(computed)
            answers = [Outcome(item) if isinstance(item, Exception) else next(outcomes) for item in items]
            return encode_reply(
                [answer.result for answer in answers],
                first.dim,
                form.get("dtype", "float32"),
                first.choice.precision,
                [None if a.device is None else self.names[a.device] for a in answers],
                [0 if isinstance(item, Exception) else first.num_tokens(item) for item in items],
                sum(outcome.waited_s for outcome in computed),
                sum(outcome.batch.seconds for outcome in computed if outcome.batch is not None),
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
                "devices": self.names,
                "per_device": [
                    {"name": name, **counters} for name, counters in zip(self.names, per_device, strict=True)
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
            self.watch.cancel()
            self.open.close()
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
        tracing={"excluded_urls": ".*"},  # `embed` continues the gateway's trace itself
    )(Runner)
    service.add_asgi_middleware(JsonAlone)
    service.add_asgi_middleware(EndForWhoLeft)
    return service


def fault_of(model: Model, stored: bentoml.Model) -> str | None:
    """Why a stored checkpoint is not what the catalogue says, in one line; None if it is. Reads headers alone."""
    try:
        checkpoints.verify(Path(stored.path), model)
    except CheckpointError as error:
        return f"{stored.tag}: {error}"
    return None


def exit_soon(model: Model | TextModel) -> None:
    """Ends this process, which has no device left; BentoML starts another, in which they may be well again."""
    logger.critical("%s has lost its last device; the runner ends and is started anew", model.name)
    asyncio.get_running_loop().call_later(EXIT_AFTER_S, os._exit, 1)
