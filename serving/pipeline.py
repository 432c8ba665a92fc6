"""The path of every request: look up, run the misses in windows, hand out, store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from models.planning import cost, plan
from serving.cache import Cache, KeyParts, cache_key
from serving.errors import DeadlineExceeded, InferenceFailed
from serving.runners import ServedModel
from serving.sequences import Protein
from serving.threads import run_to_its_end

WINDOW_TOKENS = 16_384  # cost of what is sent to a runner in one call
WINDOW_BYTES = 32_000_000  # of embeddings that a window brings back, that a look-up fetches, that a write sends
WINDOWS_IN_FLIGHT = 2  # of one request: one computes while the other is handed out
MAX_CACHED_BYTES = 256_000_000  # of one value; Redis refuses 512 MB


@dataclass(frozen=True)
class Options:
    """What a request wants of a model. pooled: one vector a sequence, else one a residue."""

    pooled: bool = True
    dtype: Literal["float16", "float32"] = "float16"


class Sink(Protocol):
    """Takes embeddings as they arrive, in any order; called from one thread at a time."""

    def add(self, index: int, embedding: np.ndarray) -> None: ...


class MemorySink:
    """Keeps what it is given, by index."""

    def __init__(self) -> None:
        self.embeddings: dict[int, np.ndarray] = {}

    def add(self, index: int, embedding: np.ndarray) -> None:
        self.embeddings[index] = embedding


@dataclass
class Report:
    """What happened to a request. Indices are those of the request's sequences; times are milliseconds."""

    cached: list[bool]
    errors: dict[int, str] = field(default_factory=dict)
    precision: str = ""
    cache_ms: float = 0.0
    inference_ms: float = 0.0
    total_ms: float = 0.0
    runner_calls: int = 0


class Pipeline:
    """Embeds cleaned proteins with a served model through the cache, each request within `timeout_s`."""

    def __init__(self, cache: Cache, timeout_s: float) -> None:
        self.cache = cache
        self.timeout_s = timeout_s

    async def embed(
        self, served: ServedModel, proteins: Sequence[Protein], options: Options, sink: Sink
    ) -> Report:
        """Every protein's embedding into the sink; equal sequences are looked up and computed once.

        Raises:
            InferenceFailed: no sequence could be embedded. Where some could, `errors` names the others.
            RunnerUnavailable, DeadlineExceeded: what was computed until then is in the cache.
        """
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self.timeout_s):
                report = await self._run(served, proteins, options, sink)
        except TimeoutError:
            raise DeadlineExceeded(f"the request took over {self.timeout_s:g} seconds") from None
        report.total_ms = (time.perf_counter() - started) * 1e3
        if len(report.errors) == len(proteins):
            raise InferenceFailed(next(iter(report.errors.values())))
        return report

    async def _run(self, served: ServedModel, proteins: Sequence[Protein], options: Options, sink: Sink) -> Report:
        precision = (await served.describe())["precision"]
        request = _Request(served, proteins, options, sink, precision, self.cache)
        misses = await request.look_up()
        try:
            await request.compute(misses)
        finally:
            await request.flush()
        return request.report


class _Request:
    """One request on its way through. A sequence is known by its place in `sequences`, which are all different."""

    def __init__(
        self,
        served: ServedModel,
        proteins: Sequence[Protein],
        options: Options,
        sink: Sink,
        precision: str,
        cache: Cache,
    ) -> None:
        model = served.model
        self.served, self.options, self.sink, self.cache = served, options, sink, cache
        self.indices: dict[str, list[int]] = {}
        for index, protein in enumerate(proteins):
            self.indices.setdefault(model.read_as(protein.sequence), []).append(index)
        self.sequences = list(self.indices)
        parts = KeyParts(model.name, served.version, precision, options.dtype, options.pooled)
        self.keys = [cache_key(parts, sequence) for sequence in self.sequences]
        self.report = Report(cached=[False] * len(proteins), precision=precision)
        self._sink_is_free = asyncio.Lock()
        self._unwritten: dict[str, np.ndarray] = {}
        self._uncounted = (0, 0)
        self._has_right_keys = True

    async def look_up(self) -> list[int]:
        """Hands out what the cache holds. Returns the places of the sequences that it does not."""
        misses: list[int] = []
        for places in plan([self._size_bytes(s) for s in self.sequences], WINDOW_BYTES):
            started = time.perf_counter()
            found = await self.cache.get_many([self.keys[place] for place in places])
            self.report.cache_ms += (time.perf_counter() - started) * 1e3
            hits: list[tuple[int, np.ndarray]] = []
            for place, embedding in zip(places, found, strict=True):
                if embedding is None or embedding.shape != self._shape(place):
                    misses.append(place)
                else:
                    hits.append((place, embedding))
            for place, _ in hits:
                for index in self.indices[self.sequences[place]]:
                    self.report.cached[index] = True
            await self._hand_out(hits)
        num_hits = sum(self.report.cached)
        self._uncounted = (num_hits, len(self.report.cached) - num_hits)
        return misses

    async def compute(self, misses: Sequence[int]) -> None:
        """Runs the misses in windows, a few at a time, so that no request holds a runner's whole queue."""
        windows = self._windows(misses)
        clock = _Stopwatch()

        async def feed() -> None:
            for places in windows:
                await self._run(places, clock)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(WINDOWS_IN_FLIGHT):
                    group.create_task(feed())
        except BaseExceptionGroup as group_error:
            error = group_error.exceptions[0]
            raise error from error.__cause__
        finally:
            self.report.inference_ms = clock.total_ms

    async def flush(self) -> None:
        """Writes what was computed, and the counts of hits and misses, to the cache."""
        unwritten, self._unwritten = self._unwritten, {}
        (hits, misses), self._uncounted = self._uncounted, (0, 0)
        # A sibling window's failure cancels this one; what is computed is to be kept all the same
        await asyncio.shield(self.cache.put_many(unwritten, hits, misses))

    async def _run(self, places: Sequence[int], clock: _Stopwatch) -> None:
        with clock:
            self.report.runner_calls += 1
            reply = await self.served.runner.embed(
                [self.sequences[place] for place in places], self.options.pooled, self.options.dtype
            )
        computed: list[tuple[int, np.ndarray]] = []
        start = 0
        for offset, (place, rows) in enumerate(zip(places, reply.lengths, strict=True)):
            if offset in reply.errors:
                for index in self.indices[self.sequences[place]]:
                    self.report.errors[index] = reply.errors[offset]
                continue
            embedding = reply.embeddings[start : start + rows].reshape(self._shape(place))
            computed.append((place, embedding))
            start += rows
        if reply.precision != self.report.precision:
            # The runner was started anew on other hardware: its answers are right, the keys are not
            self.report.precision = reply.precision
            self.served.forget()
            self._has_right_keys = False
        for place, embedding in computed:
            if self._has_right_keys and embedding.nbytes <= MAX_CACHED_BYTES:
                self._unwritten[self.keys[place]] = embedding
        await self._hand_out(computed)
        if sum(embedding.nbytes for embedding in self._unwritten.values()) >= WINDOW_BYTES:
            await self.flush()

    async def _hand_out(self, embeddings: Sequence[tuple[int, np.ndarray]]) -> None:
        """To the sink, once for each index that asked; off the event loop, as the sink may write a file."""

        def add() -> None:
            for place, embedding in embeddings:
                for index in self.indices[self.sequences[place]]:
                    self.sink.add(index, embedding)

        if embeddings:
            async with self._sink_is_free:
                await run_to_its_end(add)

    def _windows(self, misses: Sequence[int]) -> Iterator[list[int]]:
        dim = self.served.model.dim
        tokens = WINDOW_TOKENS
        if not self.options.pooled:
            tokens = min(tokens, WINDOW_BYTES // (dim * self._itemsize))
        for window in plan([cost(len(self.sequences[place]), dim) for place in misses], tokens):
            yield [misses[i] for i in window]

    @property
    def _itemsize(self) -> int:
        return np.dtype(self.options.dtype).itemsize

    def _size_bytes(self, sequence: str) -> int:
        rows = 1 if self.options.pooled else len(sequence)
        return rows * self.served.model.dim * self._itemsize

    def _shape(self, place: int) -> tuple[int, ...]:
        dim = self.served.model.dim
        return (dim,) if self.options.pooled else (len(self.sequences[place]), dim)


class _Stopwatch:
    """Time during which at least one of several overlapping spans was open."""

    def __init__(self) -> None:
        self.total_ms = 0.0
        self._open = 0
        self._since = 0.0

    def __enter__(self) -> None:
        if self._open == 0:
            self._since = time.perf_counter()
        self._open += 1

    def __exit__(self, *_: object) -> None:
        self._open -= 1
        if self._open == 0:
            self.total_ms += (time.perf_counter() - self._since) * 1e3
