"""The path of every request: look up, run the misses call by call, hand out, store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar

import numpy as np

from models.planning import plan
from models.wire import Reply
from serving.cache import Cache, KeyParts, cache_key
from serving.errors import DeadlineExceeded, InferenceFailed
from serving.measures import measures_of_process
from serving.parts import Call, Joiner, Options, Part, plan_calls
from serving.runners import ServedModel, Terms
from serving.sequences import Protein
from serving.tasks import a_few_at_a_time, apart
from serving.telemetry import span
from serving.threads import run_to_its_end

T = TypeVar("T")

LOOKUP_BYTES = 32_000_000  # of embeddings that one look-up could fetch
WRITE_BYTES = 32_000_000  # of embeddings that are gathered for one write
CALLS_IN_FLIGHT = 2  # of one request: one computes while the other is handed out
MAX_CACHED_BYTES = 256_000_000  # of one value; Redis refuses 512 MB


Admit = Callable[[Terms, int], Awaitable[None]]


async def let_in(_: Terms, __: int) -> None:
    """Whoever asks may have as much as he wants."""


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
    """What happened to a request. Indices are those of the request's sequences; times are milliseconds.

    devices: on which each sequence was computed that was not in the cache.
    """

    cached: list[bool]
    errors: dict[int, str] = field(default_factory=dict)
    devices: dict[int, str] = field(default_factory=dict)
    precision: str = ""
    cache_ms: float = 0.0
    inference_ms: float = 0.0
    total_ms: float = 0.0
    runner_calls: int = 0


class Pipeline:
    """Embeds cleaned proteins with a served model through the cache.

    Args:
        admit: asked before anything is computed, with the number of its tokens; raises where it is too much.
    """

    def __init__(self, cache: Cache, admit: Admit = let_in) -> None:
        self.cache = cache
        self._admit = admit

    async def embed(
        self, served: ServedModel, proteins: Sequence[Protein], options: Options, sink: Sink, terms: Terms
    ) -> Report:
        """Every protein's embedding into the sink; equal sequences are looked up and computed once.

        Raises:
            InferenceFailed: no sequence could be embedded. Where some could, `errors` names the others.
            Overloaded: too much waits for the model; nothing was computed.
            RunnerUnavailable, DeadlineExceeded: what was computed until then is in the cache.
        """
        started = time.perf_counter()
        terms.ledger.begin("embedding", served.model.name)
        request: _Request | None = None
        try:
            async with asyncio.timeout_at(terms.deadline):
                await asyncio.sleep(0)  # a deadline that is over is noticed before anything is done
                precision = (await served.describe())["precision"]
                request = _Request(served, proteins, options, sink, precision, self.cache)
                await self._run(request, terms)
        except TimeoutError:
            raise DeadlineExceeded(f"the request took over {time.perf_counter() - started:.3g} seconds") from None
        finally:
            # Behind the deadline: a Redis that takes its time makes no answer late that is there
            if request is not None:
                await request.flush()
        report = request.report
        report.total_ms = (time.perf_counter() - started) * 1e3
        if len(report.errors) == len(proteins):
            raise InferenceFailed(next(iter(report.errors.values())))
        return report

    async def _run(self, request: _Request, terms: Terms) -> None:
        num_proteins = len(request.report.cached)
        with span("cache.lookup", {"pes.sequences": num_proteins}):
            misses = await request.look_up()
        num_hits = sum(request.report.cached)
        self.cache.count(request.served.model.name, num_hits, num_proteins - num_hits)
        terms.ledger.note_lookup(num_hits, num_proteins - num_hits)
        if misses:
            await self._admit(terms, sum(request.num_tokens(place) for place in misses))
            await request.compute(misses, terms)


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
        parts = KeyParts(model.base_name, served.version, precision, options.dtype, options.pooled, options.window)
        self.keys = [cache_key(parts, sequence) for sequence in self.sequences]
        self.report = Report(cached=[False] * len(proteins), precision=precision)
        self._sink_is_free = asyncio.Lock()
        self._unwritten: dict[str, np.ndarray] = {}
        self._has_right_keys = True
        self._joiner = Joiner(model.dim, options)

    async def look_up(self) -> list[int]:
        """Hands out what the cache holds. Returns the places of the sequences that it does not."""
        misses: list[int] = []
        for places in plan([self._size_bytes(s) for s in self.sequences], LOOKUP_BYTES):
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
                for index in self._indices(place):
                    self.report.cached[index] = True
            if hits:
                num_bytes = sum(embedding.nbytes for _, embedding in hits)
                await self._in_turn(partial(self._hand_out, hits), num_bytes)
        return misses

    async def compute(self, misses: Sequence[int], terms: Terms) -> None:
        """Runs the misses call by call, a few at a time, so that no request holds a runner's whole queue.

        The first call goes alone: whether it is taken decides for all.
        """
        lengths = {place: len(self.sequences[place]) for place in misses}
        calls = plan_calls(lengths, self.served.model.dim, self.options)
        clock = _Stopwatch()
        admitted = replace(terms, is_admitted=True)

        try:
            await self._run(next(calls), clock, terms)
            await a_few_at_a_time(calls, lambda call: self._run(call, clock, admitted), CALLS_IN_FLIGHT)
        finally:
            self.report.inference_ms = clock.total_ms

    async def flush(self) -> None:
        """Writes what was computed to the cache."""
        unwritten, self._unwritten = self._unwritten, {}
        if unwritten:
            with span("cache.store"):
                # A sibling window's failure cancels this one; what is computed is to be kept all the same
                await apart(self.cache.put_many(unwritten))

    async def _run(self, call: Call, clock: _Stopwatch, terms: Terms) -> None:
        with clock:
            self.report.runner_calls += 1
            if not call.parts[0].is_whole:
                measures_of_process().windows.labels(self.served.model.name).inc(len(call.parts))
            sequences = [self.sequences[part.place][part.span] for part in call.parts]
            reply = await self.served.runner.embed(sequences, call.form, terms)
        if reply.precision != self.report.precision:
            # The runner was started anew on other hardware: its answers are right, the keys are not
            self.report.precision = reply.precision
            self.served.forget()
            self._has_right_keys = False
        computed = await self._in_turn(lambda: self._take(call.parts, reply), reply.embeddings.nbytes)
        for place, embedding in computed:
            if self._has_right_keys and embedding.nbytes <= MAX_CACHED_BYTES:
                self._unwritten[self.keys[place]] = embedding
        # Whoever takes over the job of a worker that dies finds what it computed
        is_of_job = terms.priority == "bulk"
        if is_of_job or sum(embedding.nbytes for embedding in self._unwritten.values()) >= WRITE_BYTES:
            await self.flush()

    def _take(self, parts: Sequence[Part], reply: Reply) -> list[tuple[int, np.ndarray]]:
        """Hands out what a reply completes, and returns it by place; what failed goes to the report."""
        computed: list[tuple[int, np.ndarray]] = []
        start = 0
        for offset, (part, num_rows) in enumerate(zip(parts, reply.lengths, strict=True)):
            rows = reply.embeddings[start : start + num_rows]
            start += num_rows
            indices = self._indices(part.place)
            if (device := reply.devices[offset]) is not None:
                self.report.devices.update(dict.fromkeys(indices, device))
            if offset in reply.errors:
                self.report.errors.update(dict.fromkeys(indices, reply.errors[offset]))
                self._joiner.forget(part)
            elif indices[0] in self.report.errors:  # another window of it has failed
                continue
            elif part.is_whole:
                computed.append((part.place, rows.reshape(self._shape(part.place))))
            else:
                try:
                    embedding = self._joiner.add(part, rows, len(self.sequences[part.place]))
                except OverflowError as error:
                    self.report.errors.update(dict.fromkeys(indices, str(error)))
                else:
                    computed += [(part.place, embedding)] if embedding is not None else []
        self._hand_out(computed)
        return computed

    def _hand_out(self, embeddings: Sequence[tuple[int, np.ndarray]]) -> None:
        """To the sink, once for each index that asked."""
        for place, embedding in embeddings:
            for index in self._indices(place):
                self.sink.add(index, embedding)

    async def _in_turn(self, work: Callable[[], T], size_bytes: int) -> T:
        """Off the event loop if it is long, as a sink deflates and writes; one after another for this request."""
        async with self._sink_is_free:
            return await run_to_its_end(work, size_bytes)

    def num_tokens(self, place: int) -> int:
        """That the model reads for a sequence which is not cut into windows."""
        return len(self.sequences[place]) + sum(self.served.model.num_specials)

    def _indices(self, place: int) -> list[int]:
        return self.indices[self.sequences[place]]

    def _size_bytes(self, sequence: str) -> int:
        rows = 1 if self.options.pooled else len(sequence)
        return rows * self.served.model.dim * np.dtype(self.options.dtype).itemsize

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
