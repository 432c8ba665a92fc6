"""One worker's work on one job: its windows, the files that they make, the result that is put together of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from models.planning import cost
from models.wire import decode_reply, encode_reply
from serving.errors import InferenceFailed
from serving.jobs.measures import Measures
from serving.jobs.queue import JobQueue, Lease, LeaseLost
from serving.jobs.records import Progress
from serving.jobs.store import Entry, JobStore
from serving.jobs.windows import Embedder, Pace, Window
from serving.parts import Options
from serving.pipeline import Pipeline
from serving.redis import REDIS_ERRORS
from serving.results import Result, file_name, write
from serving.runners import ServedModel
from serving.tasks import end, finish
from serving.telemetry import span
from serving.threads import run_to_its_end

logger = logging.getLogger(__name__)

T = TypeVar("T")

NOTE_EVERY_S = 0.5
PAUSE_S = 1.0  # while Redis is away
STORE_PAUSE_S = 5.0
STORE_PATIENCE_S = 3600.0
UNREADABLE, UNWRITABLE = "the sequences cannot be read", "the results cannot be written"
MAX_TRIES = 10  # workers that may vanish with a job, one after another, before the job is held to be the cause
WINDOW_BYTES = 64_000_000  # of embeddings in a window


class _Stopped(Exception):
    """Raised in a thread whose job is no longer this worker's."""


class Run:
    """Args:
        lease: on the job.
        served: the job's model, as it is served here.

    is_ending: the lease may be gone because the job was ended here.
    """

    def __init__(
        self,
        lease: Lease,
        served: ServedModel,
        queue: JobQueue,
        store: JobStore,
        pipeline: Pipeline,
        measures: Measures,
    ) -> None:
        self._lease, self._job, self._served = lease, lease.job, served
        self._queue, self._store, self._measures = queue, store, measures
        options = lease.job.order.options
        window = options.max_length if options.on_too_long == "window" else None
        self._options = Options(options.pooled, options.dtype, window)
        self._embedder = Embedder(pipeline, served, self._options, self._explain_wait)
        self._progress = lease.job.progress
        self._windows: list[Window] = []  # under way
        self._pace = Pace(time.perf_counter())
        self.is_ending = False
        self._is_over = threading.Event()
        self._is_noting = asyncio.Lock()  # else a window that was noted would count as under way too

    def stop(self) -> None:
        """Lets threads end; `work` is to be cancelled then."""
        self._is_over.set()

    async def work(self) -> None:
        """The rest of the job. Its outcome is noted in Redis, whatever it is, unless the lease is lost."""
        order = self._job.order
        about: dict[str, str | int] = {
            "pes.job": order.id,
            "pes.model": order.model,
            "pes.sequences": order.num_sequences,
        }
        with span("job.run", about, parent=order.trace):
            await self._work()

    async def _work(self) -> None:
        job = self._job
        logger.info("job %s: taken at sequence %d of %d", job.id, self._progress.next, job.order.num_sequences)
        if job.tries > 1 or self._progress.next:
            self._measures.retries.labels(self._served.model.name).inc()
        try:
            if job.tries > MAX_TRIES:
                raise InferenceFailed(f"{MAX_TRIES} workers vanished at sequence {self._progress.next}")
            if job.order.tag != self._served.tag:
                await self._until_redis_answers(lambda: self._queue.restart(self._lease, self._served.tag))
                self._progress = Progress()
            await self._embed_windows()
            name, size_bytes = await self._until_stored(UNWRITABLE, self._put_together, await self._parts())
            await self._end("done", result=name, result_bytes=size_bytes)
        except (LeaseLost, _Stopped):
            pass
        except Exception as error:
            logger.exception("job %s failed", job.id)
            reason = str(error) if isinstance(error, InferenceFailed) else f"{type(error).__name__}: {error}"
            with contextlib.suppress(LeaseLost):
                await self._end("failed", reason=reason)
        finally:
            await finish(self._tidy())

    async def _end(self, state: str, **fields: str | int) -> None:
        self.is_ending = True
        await self._until_redis_answers(lambda: self._queue.end(self._lease, state=state, **fields))
        self._measures.durations.labels(self._served.model.name, state).observe(
            max(0.0, time.time() - self._job.submitted_at)
        )
        logger.info("job %s: %s", self._job.id, state)

    async def _tidy(self) -> None:
        """Deletes what nobody wants: a failed or cancelled job's files, the parts of one that is done."""
        try:
            state, result = await self._queue.outcome(self._job.id)
            if state == "done":
                await self._in_thread(self._store.keep_only, self._job.id, result)
            elif state not in ("queued", "running"):
                await self._in_thread(self._store.delete, self._job.id)
        except REDIS_ERRORS as error:  # the sweep deletes them, some day
            logger.warning("job %s leaves files behind: %s", self._job.id, error)

    async def _embed_windows(self) -> None:
        """The rest of the sequences. While a window is computed, the next one is under way, so no device waits."""
        note = asyncio.create_task(self._note_live())
        tasks: list[asyncio.Task[None]] = []
        try:
            while (window := await self._until_stored(UNREADABLE, self._next_window)) is not None:
                self._windows.append(window)
                tasks.append(asyncio.create_task(self._embedder.embed(window)))
                if len(tasks) > 1:
                    await tasks[0]
                    await self._note(self._windows[0])
                    del tasks[0]
            if tasks:
                await tasks[0]
                await self._note(self._windows[0])
        finally:
            await end(note, *tasks)

    def _next_window(self) -> Window | None:
        """What follows the windows under way; None at the end."""
        first, offset = self._progress.next, self._progress.offset
        if self._windows:
            first, offset = self._windows[-1].next, self._windows[-1].behind
        if first >= self._job.order.num_sequences:
            return None
        entries: list[Entry] = []
        tokens = size_bytes = 0
        with contextlib.closing(self._store.entries(self._job.id, offset)) as found:
            for entry, behind in found:
                tokens += self._cost(entry)
                size_bytes += self._size_bytes(entry)
                if entries and (tokens > self._pace.window_tokens or size_bytes > WINDOW_BYTES):
                    break
                entries.append(entry)
                offset = behind
        if not entries:
            raise InferenceFailed(f"the input ends at sequence {first}")
        return Window(first, entries, offset)

    def _cost(self, entry: Entry) -> int:
        if entry.sequence is None:
            return 0
        return cost(min(entry.length, self._options.window or entry.length), self._served.model.dim)

    def _size_bytes(self, entry: Entry) -> int:
        rows = 1 if self._options.pooled else entry.length
        return rows * self._served.model.dim * np.dtype(self._options.dtype).itemsize

    async def _note(self, window: Window) -> None:
        """The first of the windows under way is done: written, and noted for good."""
        assert window is self._windows[0]
        part = f"part-{window.first:09d}-{self._lease.token}"
        await self._until_stored(UNWRITABLE, self._write_part, part, window.results())
        before = self._progress
        seen = {*before.precision.split("+"), window.precision} - {""}
        progress = Progress(
            next=window.next,
            offset=window.behind,
            residues=before.residues + window.num_residues,
            num_cached=before.num_cached + window.num_cached,
            num_failed=before.num_failed + len(window.failed),
            precision="+".join(sorted(seen)),
        )
        errors = {window.first + place: reason for place, reason in sorted(window.failed.items())}
        async with self._is_noting:
            await self._until_redis_answers(
                lambda: self._queue.advance(self._lease, window.first, part, progress, errors, self._live(1))
            )
            self._progress = progress
            self._windows.pop(0)
        self._measures.windows.labels(self._served.model.name).inc()
        self._pace.note(sum(map(self._cost, window.entries)), time.perf_counter())

    async def _note_live(self) -> None:
        """How far the windows under way are goes to Redis."""
        noted = self._live()
        while True:
            await asyncio.sleep(NOTE_EVERY_S)
            async with self._is_noting:
                if (live := self._live()) != noted:
                    noted = live
                    with contextlib.suppress(LeaseLost, *REDIS_ERRORS):
                        await self._queue.renew(self._lease, **live, reason="")

    def _live(self, start: int = 0) -> dict[str, int]:
        """How far the windows under way are, from one of them on."""
        windows = self._windows[start:]
        return {
            "live_sequences": sum(window.num_done for window in windows),
            "live_residues": sum(window.num_residues for window in windows),
        }

    async def _explain_wait(self, reason: str) -> None:
        with contextlib.suppress(LeaseLost, *REDIS_ERRORS):
            await self._queue.renew(self._lease, reason=f"waiting: {reason}")

    def _write_part(self, name: str, results: Sequence[np.ndarray | Exception]) -> None:
        content = encode_reply(results, self._served.model.dim, self._options.dtype, "", [])
        self._store.write(self._job.id, name, content)

    async def _parts(self) -> Sequence[str]:
        while True:
            try:
                return await self._queue.parts(self._job.id)
            except REDIS_ERRORS:
                await asyncio.sleep(PAUSE_S)

    def _put_together(self, parts: Sequence[str]) -> tuple[str, int]:
        """The finished file: its name and size."""
        options = self._job.order.options
        name = f"{self._lease.token}-{file_name(options.format, options.pooled)}"
        with self._store.making(self._job.id, name) as path:
            write(path, options.format, self._results(parts), self._describe())
        return name, self._store.size(self._job.id, name)

    def _results(self, parts: Sequence[str]) -> Iterator[Result]:
        entries = self._store.entries(self._job.id)
        for part in parts:
            reply = decode_reply(self._store.read(self._job.id, part))
            start = 0
            for place, num_rows in enumerate(reply.lengths):
                if self._is_over.is_set():
                    raise _Stopped
                entry, _ = next(entries)
                rows = reply.embeddings[start : start + num_rows]
                start += num_rows
                error = reply.errors.get(place)
                embedding = None if error is not None else rows[0] if self._options.pooled else rows
                yield Result(entry.id, entry.length, embedding, error)

    def _describe(self) -> dict[str, Any]:
        order = self._job.order
        cut = {}
        if order.options.on_too_long == "truncate":
            found = (entry for entry, _ in self._store.entries(order.id))
            cut = {entry.id: entry.truncated_from for entry in found if entry.truncated_from is not None}
        return {
            "model": order.model,
            "tag": self._served.tag,
            "trained": self._served.is_trained,
            "precision": self._progress.precision,
            "dtype": order.options.dtype,
            "dim": self._served.model.dim,
            "layer": "last",
            "pooled": order.options.pooled,
            "pooling": "mean over residues" if order.options.pooled else "none: one row a residue",
            "on_too_long": order.options.on_too_long,
            "window": self._options.window,
            "truncated_from": cut,
            "job_id": order.id,
        }

    async def _until_stored(self, trouble: str, work: Callable[..., T], *arguments: Any) -> T:
        """A disk that is full, or a place that is away, is waited for; what was computed is not thrown away.

        trouble: what is said meanwhile. A file that is gone does not come back.
        """
        deadline = time.monotonic() + STORE_PATIENCE_S
        while True:
            try:
                return await self._in_thread(work, *arguments)
            except OSError as error:
                if isinstance(error, FileNotFoundError) or time.monotonic() > deadline:
                    raise
                logger.warning("job %s waits for its store: %s", self._job.id, error)
                await self._explain_wait(f"{trouble} ({error.strerror or error})")
                await asyncio.sleep(STORE_PAUSE_S)

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await run_to_its_end(lambda: work(*arguments))

    async def _until_redis_answers(self, ask: Callable[[], Any]) -> None:
        """What is to be noted is noted, however long Redis is away."""
        while True:
            try:
                await ask()
                return
            except REDIS_ERRORS as error:
                logger.warning("job %s waits for Redis: %s", self._job.id, error)
                await asyncio.sleep(PAUSE_S)
