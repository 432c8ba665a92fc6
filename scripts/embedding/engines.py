"""A model of the BentoML model store on the devices of this machine, as a runner has it, but in this process."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import bentoml
import numpy as np
from bentoml.exceptions import NotFound

from models.batcher import Batcher
from models.catalogue import Model, find
from models.engine import Item
from models.replicas import load_engines, shares
from models.runner import RunnerOptions
from serving.errors import InvalidRequest
from serving.parts import Joiner, Options, Part, cut
from serving.settings import Settings

WINDOW_BATCHES = 4  # for each batch that a device has at a time, or two half ones: what is asked for at once

Outcome = np.ndarray | Exception


@dataclass(frozen=True)
class StoredModel:
    """A model of the BentoML model store."""

    model: Model
    tag: str
    folder: Path
    is_trained: bool


def resolve(entry: str) -> StoredModel:
    """The stored model behind `name`, which is its latest version, or `name:version`, as service.py finds it.

    Raises:
        UnknownModel: the catalogue has no such name.
        InvalidRequest: the store does not hold it.
    """
    name, _, version = entry.partition(":")
    model = find(name)
    try:
        stored = bentoml.models.get(f"{model.store_name}:{version or 'latest'}")
    except NotFound:
        raise InvalidRequest(
            f"{entry} is not in the BentoML model store; put it there with `python -m scripts.import_model {name}`"
        ) from None
    return StoredModel(model, str(stored.tag), Path(stored.path), bool(stored.info.metadata["trained"]))


class LocalEngines:
    """A model on all devices of this machine, as a runner has it.

    Raises:
        CheckpointError: the stored files do not hold the model.
    """

    def __init__(self, stored: StoredModel, settings: Settings) -> None:
        options = RunnerOptions(
            precision=settings.precision,
            use_kernels=settings.use_kernels,
            batch_tokens=settings.batch_tokens,
            batch_items=None,
            batch_wait_s=0.0,
            queue_tokens=sys.maxsize,
            num_gpus=0,
            timeout_s=settings.runner_timeout_s,
        )
        self.model = stored.model
        with ThreadPoolExecutor(1) as loader:  # OpenMP's threads end with it, as in a runner
            engines = loader.submit(load_engines, stored.folder, stored.model, options).result()
        self.precision = engines[0].choice.precision
        limits = options.limits(engines[0].budget)
        num_full = 1 if engines[0].divides else engines[0].num_callers
        self.window_tokens = WINDOW_BATCHES * limits.budget * len(engines) * num_full
        self._batcher: Batcher[Item, np.ndarray] = Batcher(
            [engine.embed for engine in engines],
            cost=engines[0].cost,
            limits=limits,
            num_callers=engines[0].num_callers,
            shares=shares(engines),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._asked: set[Future[list[Outcome]]] = set()

    def __enter__(self) -> LocalEngines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What is not begun is not computed any more."""
        asyncio.run_coroutine_threadsafe(self._batcher.close(), self._loop).result()
        concurrent.futures.wait(self._asked)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def embed(self, sequences: Sequence[str], options: Options) -> Future[list[Outcome]]:
        """(D,) if pooled, else (L, D), for each sequence in order, or why not; equal ones are computed once."""
        future = asyncio.run_coroutine_threadsafe(self._embed(sequences, options), self._loop)
        self._asked.add(future)
        future.add_done_callback(self._asked.discard)
        return future

    async def _embed(self, sequences: Sequence[str], options: Options) -> list[Outcome]:
        sequences = [self.model.read_as(sequence) for sequence in sequences]
        parts = [
            Part(place, span, is_whole=len(spans) == 1)
            for place, sequence in enumerate(sequences)
            for spans in [cut(len(sequence), options.window)]
            for span in spans
        ]
        items = [
            Item(sequences[part.place], options.pooled, options.dtype)
            if part.is_whole
            else Item(sequences[part.place][part.span], pooled=False, dtype="float32")
            for part in parts
        ]
        found: dict[int, Outcome] = {}
        joiner = Joiner(self.model.dim, options)
        for part, outcome in zip(parts, await self._batcher.run(items, "bulk"), strict=True):
            result: Outcome | None = outcome.result
            if isinstance(result, np.ndarray) and not part.is_whole:
                try:
                    result = joiner.add(part, result, len(sequences[part.place]))
                except OverflowError as error:
                    result = error
            if result is not None:
                found[part.place] = result
        return [found[place] for place in range(len(sequences))]
