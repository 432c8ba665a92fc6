"""Workers on jobs, around a runner that counts residues: whatever happens, a job goes on, once, where it was."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet
import pytest
import redis.asyncio

from models.catalogue import MINI
from models.wire import Reply
from serving import tasks as tasks_module
from serving.cache import Cache
from serving.errors import InferenceFailed, Overloaded, RunnerUnavailable
from serving.jobs import run as run_module
from serving.jobs import windows as windows_module
from serving.jobs import worker as worker_module
from serving.jobs.measures import Measures
from serving.jobs.queue import JobQueue, Lease, LeaseLost
from serving.jobs.records import ENDED, Job
from serving.jobs.schemas import JobOptions
from serving.jobs.service import JobService
from serving.jobs.store import JobStore
from serving.jobs.worker import JobWorker
from serving.parts import cut
from serving.pipeline import Pipeline
from serving.redis import EmbeddedRedis, connect
from serving.results import PARQUET_KEY, Result, write
from serving.runners import ServedModel, Terms
from serving.sequences import Limits
from serving.settings import Settings
from serving.tasks import end
from tests.serving.conftest import CountingRunner
from tests.serving.jobs.conftest import ANY, LEASE_S, TTL_S, fasta, files_of, folders_of, until

MINE = ["esm2_mini"]
SIX = ["MKTAY", "MKTA", "MKT", "MKTAYI", "MKTAYIA", "MKTAYIAK"]
STOPS_WITHIN_S = 1.0
FULL = OSError(errno.ENOSPC, "No space left on device")


class TroubledRunner(CountingRunner):
    """A sequence with a P ends every call that it is in.

    troubles: raised first, one a call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.troubles: list[Exception] = []
        self._held: set[str] = set()
        self._changed = asyncio.Event()

    async def embed(self, sequences: list[Any], form: Mapping[str, Any], terms: Terms) -> Reply:
        if self.troubles:
            raise self.troubles.pop(0)
        if any("P" in sequence for sequence in sequences):
            raise InferenceFailed("poison")
        reply = await super().embed(sequences, form, terms)
        while self._held & set(sequences):
            await self._changed.wait()
        return reply

    def hold(self, *sequences: str) -> None:
        """From now on, keeps back the answers to these, and to no others."""
        self._held = set(sequences)
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def asked(self) -> list[str]:
        """Every sequence that it was asked for, as often as it was."""
        return [sequence for call in self.calls for sequence in call]


@pytest.fixture
def runner() -> TroubledRunner:
    return TroubledRunner()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of one sequence, and nobody waits for long."""
    monkeypatch.setattr(windows_module, "WINDOW_TOKENS", (1, 1))
    for module, name in [
        (worker_module, "POLL_S"),
        (worker_module, "PAUSE_S"),
        (run_module, "PAUSE_S"),
        (run_module, "STORE_PAUSE_S"),
        (run_module, "NOTE_EVERY_S"),
        (windows_module, "PAUSE_S"),
        (tasks_module, "AGAIN_S"),
    ]:
        monkeypatch.setattr(module, name, 0.005)


def large_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of these jobs' sequences are one window."""
    monkeypatch.setattr(windows_module, "WINDOW_TOKENS", (10_000, 10_000))


@pytest.fixture
def worker(service: JobService, pipeline: Pipeline, served: ServedModel) -> JobWorker:
    return make_worker(service, pipeline, served)


def make_worker(service: JobService, pipeline: Pipeline, served: ServedModel) -> JobWorker:
    return JobWorker(service.queue, service.store, pipeline, {served.model.name: served}, service.measures)


@contextlib.asynccontextmanager
async def working(*workers: JobWorker) -> AsyncIterator[list[asyncio.Task[None]]]:
    """While this is open, they work; at its end they hand back what they have."""
    tasks = [asyncio.create_task(worker.run()) for worker in workers]
    try:
        yield tasks
    finally:
        for task in tasks:
            assert task.cancelling() or not task.done(), "a worker works for ever"
            await end(task)


async def submit(service: JobService, served: ServedModel, *sequences: str, **options: Any) -> str:
    wanted = JobOptions(**options)
    limits = Limits(3, wanted.max_length or 5000, 1000, wanted.on_too_long)
    name = served.model.name
    job_id, _ = await service.submit(fasta(*sequences), name, served, wanted, limits, "me", "")
    return job_id


async def ended(queue: JobQueue, job_id: str) -> Job:
    await until(lambda: is_in(queue, job_id, *ENDED), "the job is over")
    return await queue.get(job_id)


async def is_in(queue: JobQueue, job_id: str, *states: str) -> bool:
    return (await queue.get(job_id)).state in states


async def is_at(queue: JobQueue, job_id: str, place: int) -> bool:
    return (await queue.get(job_id)).progress.next == place


async def waits_for(queue: JobQueue, job_id: str, what: str) -> bool:
    return what in (await queue.get(job_id)).reason


def has_asked(runner: TroubledRunner, *sequences: str) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return set(sequences) <= set(runner.asked)

    return holds


def read(store: JobStore, job: Job) -> tuple[list[np.ndarray | None], dict[str, Any]]:
    """Embeddings in the order of the job, none where one failed, and the manifest."""
    content = BytesIO(store.read(job.id, job.result))
    if job.order.options.format == "h5":
        with h5py.File(content) as file:
            names = [f"p{index}" for index in range(job.order.num_sequences)]
            return [file[name][()] if name in file else None for name in names], dict(file.attrs)
    if job.order.options.format == "parquet":
        table = pyarrow.parquet.read_table(content)
        rows = table.to_pylist()
        assert [row["id"] for row in rows] == [f"p{index}" for index in range(job.order.num_sequences)]
        manifest = json.loads(table.schema.metadata[PARQUET_KEY.encode()])
        manifest["errors"] = {str(index): row["error"] for index, row in enumerate(rows) if row["error"]}
        manifest["lengths"] = [row["length"] for row in rows]
        return [None if row["embedding"] is None else np.array(row["embedding"]) for row in rows], manifest
    with np.load(content, allow_pickle=False) as arrays:
        assert list(arrays["ids"]) == [f"p{index}" for index in range(job.order.num_sequences)]
        names = [f"embedding_{index}" for index in range(job.order.num_sequences)]
        return [arrays.get(name) for name in names], json.loads(str(arrays["manifest"]))


def lengths_in(store: JobStore, job: Job) -> list[int | None]:
    """Of pooled embeddings, which are full of their sequence's length."""
    embeddings, _ = read(store, job)
    for embedding in embeddings:
        assert embedding is None or (embedding.shape == (MINI.dim,) and len(set(embedding)) == 1)
    return [None if embedding is None else int(embedding[0]) for embedding in embeddings]


# What comes out


@pytest.mark.parametrize("are_large", [False, True], ids=["window by window", "one window"])
@pytest.mark.parametrize("format", ["npz", "h5", "parquet"])
async def test_a_job_comes_out_whole_and_in_order(
    worker: JobWorker,
    service: JobService,
    served: ServedModel,
    queue: JobQueue,
    store: JobStore,
    place: str,
    format: str,
    are_large: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if are_large:
        large_windows(monkeypatch)
    sequences = ["MKTAY", "MK", "MKW", "MKT", "MKTAY", "MKJT"]
    job_id = await submit(service, served, *sequences, format=format)
    async with working(worker):
        job = await ended(queue, job_id)
        await until(lambda: only(place, job), "the rest is deleted")
    assert (job.state, job.reason) == ("done", "")
    assert lengths_in(store, job) == [5, None, None, 3, 5, None]
    _, manifest = read(store, job)
    errors = manifest["errors"] if format != "h5" else json.loads(manifest["errors"])
    assert list(errors) == (["p1", "p2", "p5"] if format == "h5" else ["1", "2", "5"])
    assert list(errors.values())[1] == "has a W"
    assert await queue.errors(job_id, 10) == dict(zip((1, 2, 5), errors.values(), strict=True))
    assert (manifest["model"], manifest["tag"], manifest["job_id"]) == ("esm2_mini", served.tag, job_id)
    assert (manifest["precision"], manifest["dtype"]) == ("fp32", "float16")
    progress = job.progress
    assert (progress.next, progress.residues, progress.num_failed, progress.precision) == (6, 13, 3, "fp32")
    assert job.result_bytes == len(store.read(job_id, job.result))
    assert job.num_done == 6
    assert job.tries == 0


async def only(place: str, job: Job) -> bool:
    return files_of(place) == {f"{job.id}/{job.result}"}


@pytest.mark.parametrize("format", ["npz", "h5"])
async def test_embeddings_of_residues_come_out(
    worker: JobWorker, service: JobService, served: ServedModel, queue: JobQueue, store: JobStore, format: str
) -> None:
    job_id = await submit(service, served, "MKTAY", "MKW", "MKT", pooled=False, dtype="float32", format=format)
    async with working(worker):
        job = await ended(queue, job_id)
    embeddings, manifest = read(store, job)
    assert [None if e is None else e[:, 7].tolist() for e in embeddings] == [[0, 1, 2, 3, 4], None, [0, 1, 2]]
    assert {e.dtype for e in embeddings if e is not None} == {np.dtype(np.float32)}
    assert manifest["pooled"] == (format == "npz" or np.False_) or manifest["pooled"] is False


async def test_equal_sequences_are_computed_once(
    worker: JobWorker,
    service: JobService,
    served: ServedModel,
    queue: JobQueue,
    runner: TroubledRunner,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large_windows(monkeypatch)
    job_id = await submit(service, served, "MKTAY", "MKT", "MKTAY", "MKT", "MKTAY")
    async with working(worker):
        job = await ended(queue, job_id)
        assert lengths_in(store, job) == [5, 3, 5, 3, 5]
        assert runner.calls == [["MKTAY", "MKT"]]
        again = await ended(queue, await submit(service, served, "MKT", "MKTAY"))
    assert lengths_in(store, again) == [3, 5]
    assert len(runner.calls) == 1
    assert (job.progress.num_cached, again.progress.num_cached) == (0, 2)


async def test_long_sequences_are_cut_off_where_that_was_asked_for(
    worker: JobWorker, service: JobService, served: ServedModel, queue: JobQueue, store: JobStore
) -> None:
    job_id = await submit(service, served, "M" * 25, "MKT", max_length=20, on_too_long="truncate")
    async with working(worker):
        job = await ended(queue, job_id)
    assert lengths_in(store, job) == [20, 3]
    _, manifest = read(store, job)
    assert (manifest["lengths"], manifest["truncated_from"]) == ([20, 3], {"p0": 25})


async def test_long_sequences_are_computed_in_windows_where_that_was_asked_for(
    worker: JobWorker,
    service: JobService,
    served: ServedModel,
    queue: JobQueue,
    store: JobStore,
    runner: TroubledRunner,
) -> None:
    options = {"pooled": False, "dtype": "float32", "max_length": 256, "on_too_long": "window"}
    job_id = await submit(service, served, "M" * 400, "MKT", **options)
    async with working(worker):
        job = await ended(queue, job_id)
    assert sorted(len(sequence) for sequence in runner.asked) == [3, 256, 256]
    total, counts = np.zeros(400), np.zeros(400)
    for span in cut(400, 256):
        total[span] += np.arange(256)
        counts[span] += 1
    embeddings, manifest = read(store, job)
    assert embeddings[0] is not None
    np.testing.assert_array_equal(embeddings[0][:, 0], total / counts)
    assert (manifest["window"], manifest["on_too_long"]) == (256, "window")


async def test_the_arithmetic_of_all_workers_is_named(
    service: JobService,
    pipeline: Pipeline,
    served: ServedModel,
    queue: JobQueue,
    store: JobStore,
    runner: TroubledRunner,
) -> None:
    job_id = await submit(service, served, *SIX)
    runner.hold(*SIX[2:])
    async with working(make_worker(service, pipeline, served)):
        await until(lambda: is_at(queue, job_id, 2), "two windows are done")
    runner.precision = "bf16"
    served.forget()
    runner.hold()
    async with working(make_worker(service, pipeline, served)):
        job = await ended(queue, job_id)
    assert lengths_in(store, job) == [5, 4, 3, 6, 7, 8]
    _, manifest = read(store, job)
    assert (job.progress.precision, manifest["precision"]) == ("bf16+fp32", "bf16+fp32")


async def test_many_workers_share_many_jobs(
    service: JobService,
    pipeline: Pipeline,
    served: ServedModel,
    queue: JobQueue,
    store: JobStore,
    measures: Measures,
) -> None:
    ids = [await submit(service, served, *["M" * (3 + job + i) for i in range(4)]) for job in range(6)]
    async with working(*(make_worker(service, pipeline, served) for _ in range(3))):
        jobs = [await ended(queue, job_id) for job_id in ids]
    assert [lengths_in(store, job) for job in jobs] == [[3 + job + i for i in range(4)] for job in range(6)]
    assert counted(measures.windows) == 24
    assert counted(measures.retries) == 0


def counted(counter: Any) -> float:
    value: float = counter.labels("esm2_mini")._value.get()
    return value


# Sequences and calls that fail


async def test_a_job_in_which_every_sequence_fails_is_done_all_the_same(
    worker: JobWorker,
    service: JobService,
    served: ServedModel,
    queue: JobQueue,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large_windows(monkeypatch)
    job_id = await submit(service, served, "MWT", "MTW", "WWWW", "MWWM")
    async with working(worker):
        job = await ended(queue, job_id)
    assert (job.state, job.progress.next, job.progress.num_failed, job.progress.residues) == ("done", 4, 4, 0)
    assert await queue.errors(job_id, 10) == dict.fromkeys(range(4), "has a W")
    assert lengths_in(store, job) == [None] * 4


@pytest.mark.parametrize("poisoned", [{3}, {0, 7}, {1, 2, 3}, set(range(8))])
async def test_a_sequence_that_ends_every_call_is_found_and_the_others_are_embedded(
    worker: JobWorker,
    service: JobService,
    served: ServedModel,
    queue: JobQueue,
    store: JobStore,
    poisoned: set[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large_windows(monkeypatch)
    sequences = ["M" * (3 + i) + "P" * (i in poisoned) for i in range(8)]
    job_id = await submit(service, served, *sequences)
    async with working(worker):
        job = await ended(queue, job_id)
    assert job.state == "done"
    assert lengths_in(store, job) == [None if i in poisoned else 3 + i for i in range(8)]
    assert await queue.errors(job_id, 10) == dict.fromkeys(sorted(poisoned), "poison")


async def test_a_runner_that_is_full_is_asked_again_when_it_said(
    worker: JobWorker, service: JobService, served: ServedModel, queue: JobQueue, runner: TroubledRunner
) -> None:
    runner.troubles = [Overloaded("full", retry_after_s=0.02) for _ in range(3)]
    job_id = await submit(service, served, *SIX)
    started = asyncio.get_running_loop().time()
    async with working(worker):
        job = await ended(queue, job_id)
    assert asyncio.get_running_loop().time() - started >= 0.04, "two windows ask at the same time"
    assert (job.state, job.progress.num_failed) == ("done", 0)
    assert sorted(runner.asked) == sorted(SIX)


async def test_jobs_wait_behind_requests_and_are_not_admitted_before_they_are_taken(
    worker: JobWorker, service: JobService, served: ServedModel, queue: JobQueue, runner: TroubledRunner
) -> None:
    async with working(worker):
        await ended(queue, await submit(service, served, *SIX))
    assert {(terms.priority, terms.is_admitted) for terms in runner.terms} == {("bulk", False)}


async def test_a_runner_that_is_away_is_waited_for_and_the_reason_is_shown(
    worker: JobWorker, service: JobService, served: ServedModel, queue: JobQueue, runner: TroubledRunner
) -> None:
    runner.is_down = True
    job_id = await submit(service, served, *SIX)
    async with working(worker):
        await until(lambda: waits_for(queue, job_id, "waiting: down"), "it is said")
        assert await is_in(queue, job_id, "running")
        runner.is_down = False
        job = await ended(queue, job_id)
    assert (job.state, job.reason, job.progress.num_failed) == ("done", "", 0)


async def test_a_runner_that_dies_with_a_call_is_asked_again(
    worker: JobWorker, service: JobService, served: ServedModel, queue: JobQueue, runner: TroubledRunner
) -> None:
    runner.troubles = [RunnerUnavailable("it died"), RunnerUnavailable("it died")]
    job_id = await submit(service, served, *SIX)
    async with working(worker):
        job = await ended(queue, job_id)
    assert (job.state, job.progress.num_failed) == ("done", 0)


async def test_what_nobody_expected_fails_the_job_with_the_reason_and_the_worker_goes_on(
    worker: JobWorker,
    service: JobService,
    served: ServedModel,
    queue: JobQueue,
    runner: TroubledRunner,
    place: str,
    measures: Measures,
) -> None:
    runner.troubles = [ZeroDivisionError("of all things")] * 2  # each window under way meets one
    job_id = await submit(service, served, *SIX)
    async with working(worker):
        job = await ended(queue, job_id)
        assert (job.state, job.reason) == ("failed", "ZeroDivisionError: of all things")
        await until(lambda: is_empty(place), "its files are deleted")
        runner.troubles = []
        assert (await ended(queue, await submit(service, served, *SIX))).state == "done"
    assert ends_of(measures) == {"failed": 1, "done": 1}


def ends_of(measures: Measures) -> dict[str, float]:
    """How many jobs were counted, by state."""
    samples = next(iter(measures.durations.collect())).samples
    return {sample.labels["state"]: sample.value for sample in samples if sample.name.endswith("_count")}


async def is_empty(place: str) -> bool:
    return folders_of(place) == set()


async def test_a_job_that_cannot_be_read_does_not_end_the_worker(
    worker: JobWorker, service: JobService, served: ServedModel, queue: JobQueue, client: redis.asyncio.Redis
) -> None:
    """Another version of the service may have submitted it."""
    unreadable = await submit(service, served, *SIX)
    await client.hset(f"pes:job:{unreadable}", "options", '{"pooled": true, "layer": 3}')
    readable = await submit(service, served, *SIX)
    async with working(worker):
        assert (await ended(queue, readable)).state == "done"


# Cancelled


@pytest.mark.parametrize("state", ["a window is computed", "its runner is away", "its store is full"])
async def test_a_cancelled_job_is_let_go_within_a_second(
    worker: JobWorker,
    service: JobService,
    served: ServedModel,
    queue: JobQueue,
    runner: TroubledRunner,
    store: JobStore,
    place: str,
    state: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise FULL

    job_id = await submit(service, served, *SIX)
    if state == "a window is computed":
        runner.hold(*SIX[2:])
    elif state == "its runner is away":
        runner.troubles = [RunnerUnavailable("down")] * 100_000
    else:
        monkeypatch.setattr(store, "write", refuse)
    other = await submit(service, served, "MMMMM")
    async with working(worker):
        if state == "a window is computed":
            await until(lambda: is_at(queue, job_id, 2), "two windows are done")
            await until(has_asked(runner, *SIX[:4]), "two are under way")
        else:
            await until(lambda: waits_for(queue, job_id, "waiting: "), "it waits")
        started = asyncio.get_running_loop().time()
        assert await service.cancel(await queue.get(job_id))
        runner.troubles = []
        await until(has_asked(runner, "MMMMM"), "the next job is begun")
        assert asyncio.get_running_loop().time() - started < STOPS_WITHIN_S
        await until(lambda: has_no_files(place, job_id), "its files are gone")
    job = await queue.get(job_id)
    assert (job.state, job.reason) == ("cancelled", "")
    assert not {*SIX[4:]} & set(runner.asked), "nothing of it is begun any more"
    assert await is_in(queue, other, "queued", "done")


class Slow:
    """A blocking function that says when it was called, and goes on when it may."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self.has_begun, self.may_go_on = threading.Event(), threading.Event()
        self._work = work

    def __call__(self, *arguments: Any) -> Any:
        self.has_begun.set()
        assert self.may_go_on.wait(20)
        return self._work(*arguments)


async def has_no_files(place: str, job_id: str) -> bool:
    return job_id not in folders_of(place)


class SlowWriter:
    """In place of `write` of results: notes each that it is given, and goes on when it may."""

    def __init__(self) -> None:
        self.has_begun, self.may_go_on = threading.Event(), threading.Event()
        self.written: list[str] = []

    def __call__(self, path: Path, format: Any, results: Iterable[Result], about: dict[str, Any]) -> None:
        write(path, format, self._watch(results), about)

    def _watch(self, results: Iterable[Result]) -> Iterator[Result]:
        for result in results:
            self.written.append(result.id)
            self.has_begun.set()
            assert self.may_go_on.wait(20)
            yield result


async def test_a_job_that_is_cancelled_while_its_result_is_put_together_leaves_no_file(
    worker: JobWorker,
    service: JobService,
    served: ServedModel,
    queue: JobQueue,
    place: str,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    writer = SlowWriter()
    monkeypatch.setattr(run_module, "write", writer)
    job_id = await submit(service, served, *SIX)

    async def has_noticed() -> bool:
        return f"job {job_id}: cancelled, or another worker's" in caplog.text

    async with working(worker):
        await asyncio.to_thread(writer.has_begun.wait)
        assert await service.cancel(await queue.get(job_id))
        await until(has_noticed, "the worker has noticed")
        writer.may_go_on.set()
        other = await submit(service, served, "MMMMM")
        assert (await ended(queue, other)).state == "done"
        await until(lambda: has_no_files(place, job_id), "its files are gone")
    assert writer.written == ["p0", "p0"], "of either job; the first one's others were not written"
    scratch = data_dir / "scratch"
    assert not scratch.exists() or not list(scratch.iterdir())


async def test_who_ends_does_not_write_a_result_to_its_end_before(
    service: JobService,
    pipeline: Pipeline,
    served: ServedModel,
    queue: JobQueue,
    store: JobStore,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer = SlowWriter()
    monkeypatch.setattr(run_module, "write", writer)
    job_id = await submit(service, served, *SIX)
    async with working(make_worker(service, pipeline, served)) as (task,):
        await asyncio.to_thread(writer.has_begun.wait)
        ending = asyncio.create_task(end(task))
        await until(lambda: is_pressed(task), "it is told to end")
        writer.may_go_on.set()
        await ending
    assert writer.written == ["p0"]
    assert await is_in(queue, job_id, "queued")
    async with working(make_worker(service, pipeline, served)):
        job = await ended(queue, job_id)
        await until(lambda: only(place, job), "nothing of the first one is left")
    assert lengths_in(store, job) == [5, 4, 3, 6, 7, 8]


async def is_pressed(task: asyncio.Task[None]) -> bool:
    """Whether it was told to end more than once."""
    return task.cancelling() > 2


async def test_what_is_written_after_a_job_was_cancelled_is_deleted_too(
    worker: JobWorker,
    service: JobService,
    served: ServedModel,
    queue: JobQueue,
    store: JobStore,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = Slow(store.write)
    job_id = await submit(service, served, *SIX)
    with monkeypatch.context() as patch:
        patch.setattr(store, "write", slow)
        async with working(worker):
            await asyncio.to_thread(slow.has_begun.wait)
            assert await service.cancel(await queue.get(job_id))
            slow.may_go_on.set()
            await ended(queue, await submit(service, served, "MMMMM"))
    assert job_id not in folders_of(place)


# Handed over


async def test_who_ends_hands_its_job_back_and_the_next_goes_on_where_it_was(
    service: JobService,
    pipeline: Pipeline,
    served: ServedModel,
    queue: JobQueue,
    runner: TroubledRunner,
    store: JobStore,
    measures: Measures,
) -> None:
    job_id, behind = [await submit(service, served, *SIX) for _ in range(2)]
    runner.hold(*SIX[3:])
    async with working(make_worker(service, pipeline, served)):
        await until(lambda: is_at(queue, job_id, 3), "three windows are done")
        await until(has_asked(runner, *SIX[:5]), "two are under way")
    job = await queue.get(job_id)
    assert (job.state, job.progress.next, job.tries) == ("queued", 3, 0)
    assert len(await queue.parts(job_id)) == 3
    num_before = len(runner.asked)
    runner.hold()
    async with working(make_worker(service, pipeline, served)):
        job = await ended(queue, job_id)
        assert lengths_in(store, job) == [5, 4, 3, 6, 7, 8]
        assert sorted(runner.asked[num_before:]) == sorted(SIX[3:]), "what was noted is not computed again"
        assert not await is_in(queue, behind, "failed")
        assert (await ended(queue, behind)).state == "done"
    assert counted(measures.retries) == 1


async def test_a_job_is_handed_back_though_a_file_takes_its_time(
    worker: JobWorker,
    service: JobService,
    served: ServedModel,
    queue: JobQueue,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = Slow(store.write)
    monkeypatch.setattr(store, "write", slow)
    job_id = await submit(service, served, *SIX)
    async with working(worker) as (task,):
        await asyncio.to_thread(slow.has_begun.wait)
        ending = asyncio.create_task(end(task))
        await until(lambda: is_pressed(task), "it is told to end")
        slow.may_go_on.set()
        await ending
    assert await is_in(queue, job_id, "queued")


class SlowTake(JobQueue):
    """Redis gives a job, and its answer comes when it may."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        super().__init__(client, LEASE_S, TTL_S)
        self.has_taken, self.may_go_on = asyncio.Event(), asyncio.Event()

    async def take(self, *arguments: Any) -> Lease | None:
        lease = await super().take(*arguments)
        self.has_taken.set()
        await self.may_go_on.wait()
        return lease


async def test_a_job_that_is_taken_while_its_worker_is_told_to_end_is_handed_back(
    client: redis.asyncio.Redis,
    service: JobService,
    pipeline: Pipeline,
    served: ServedModel,
    runner: TroubledRunner,
) -> None:
    queue = SlowTake(client)
    service = replace(service, queue=queue)
    job_id = await submit(service, served, *SIX)
    async with working(make_worker(service, pipeline, served)) as (task,):
        await queue.has_taken.wait()
        ending = asyncio.create_task(end(task))
        await until(lambda: is_pressed(task), "it is told to end")
        queue.may_go_on.set()
        await ending
    job = await queue.get(job_id)
    assert (job.state, job.tries, runner.calls) == ("queued", 0, [])


class LateAnswers(JobQueue):
    """Redis ends a job, or tells of one, and its answer comes when it may."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        super().__init__(client, LEASE_S, TTL_S)
        self.has_ended, self.has_told, self.may_go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.num_refused = 0

    async def renew(self, *arguments: Any, **fields: Any) -> None:
        try:
            await super().renew(*arguments, **fields)
        except LeaseLost:
            self.num_refused += 1
            raise

    async def end(self, *arguments: Any, **fields: Any) -> None:
        await super().end(*arguments, **fields)
        self.has_ended.set()
        await self.may_go_on.wait()

    async def outcome(self, job_id: str) -> tuple[str, str]:
        found = await super().outcome(job_id)
        self.has_told.set()
        await self.may_go_on.wait()
        return found


async def test_who_has_ended_a_job_has_not_lost_it(
    client: redis.asyncio.Redis, service: JobService, pipeline: Pipeline, served: ServedModel, measures: Measures
) -> None:
    """Though its lease is gone before it hears of it."""
    queue = LateAnswers(client)
    service = replace(service, queue=queue)
    job_id = await submit(service, served, "MKT")

    async def has_looked() -> bool:
        return queue.num_refused > 2

    async with working(make_worker(service, pipeline, served)):
        await queue.has_ended.wait()
        await until(has_looked, "it looks after its lease")
        queue.may_go_on.set()
        await ended(queue, await submit(service, served, "MKT"))
    assert ends_of(measures)["done"] == 2
    assert await is_in(queue, job_id, "done")


async def test_who_ends_before_it_has_tidied_up_tidies_up(
    client: redis.asyncio.Redis, service: JobService, pipeline: Pipeline, served: ServedModel, place: str
) -> None:
    queue = LateAnswers(client)
    service = replace(service, queue=queue)
    job_id = await submit(service, served, "MKT")
    async with working(make_worker(service, pipeline, served)) as (task,):
        await queue.has_ended.wait()
        ending = asyncio.create_task(end(task))
        await queue.has_told.wait()
        await until(lambda: is_pressed(task), "it is told to end")
        queue.may_go_on.set()
        await ending
    assert await only(place, await queue.get(job_id))


class Forgetful(JobQueue):
    """Of a worker that is killed: it hands nothing back."""

    async def hand_back(self, lease: Lease) -> None:
        raise redis.ConnectionError("nobody is there")


async def test_the_job_of_who_vanished_is_taken_up_where_it_was(
    client: redis.asyncio.Redis,
    service: JobService,
    pipeline: Pipeline,
    served: ServedModel,
    queue: JobQueue,
    runner: TroubledRunner,
    store: JobStore,
    measures: Measures,
) -> None:
    vanishing = replace(service, queue=Forgetful(client, lease_s=0, ttl_s=TTL_S))
    job_id = await submit(service, served, *SIX)
    runner.hold(*SIX[3:])
    async with working(make_worker(vanishing, pipeline, served)):
        await until(lambda: is_at(queue, job_id, 3), "three windows are done")
        await until(has_asked(runner, *SIX[:5]), "two are under way")
    assert await is_in(queue, job_id, "running")
    num_before = len(runner.asked)
    runner.hold()
    async with working(make_worker(service, pipeline, served)):
        job = await ended(queue, job_id)
    assert lengths_in(store, job) == [5, 4, 3, 6, 7, 8]
    assert sorted(runner.asked[num_before:]) == sorted(SIX[3:])
    assert counted(measures.retries) == 1


async def test_whose_job_has_gone_to_another_writes_nothing_and_deletes_nothing(
    client: redis.asyncio.Redis,
    service: JobService,
    pipeline: Pipeline,
    served: ServedModel,
    queue: JobQueue,
    lapsing: JobQueue,
    runner: TroubledRunner,
    place: str,
) -> None:
    """It was stopped for a while, say."""
    job_id = await submit(service, served, *SIX)
    other = await submit(service, served, "MMMMM")
    runner.hold(*SIX)
    async with working(make_worker(replace(service, queue=lapsing), pipeline, served)):
        await until(has_asked(runner, SIX[0]), "it has the first")
        heir = await queue.take(MINE, "heir")
        assert heir is not None
        assert heir.job.id == job_id
        before, files = await client.dump(f"pes:job:{job_id}"), files_of(place)
        await until(has_asked(runner, "MMMMM"), "it has noticed, and goes on with the next job")
        runner.hold()
        assert (await ended(queue, other)).state == "done"
    assert await client.dump(f"pes:job:{job_id}") == before
    assert {file for file in files_of(place) if file.startswith(job_id)} == {f"{job_id}/input.jsonl"}
    assert f"{job_id}/input.jsonl" in files
    assert await queue.parts(job_id) == []
    await queue.renew(heir)


async def test_who_fails_at_a_job_that_has_gone_to_another_deletes_nothing(
    service: JobService,
    pipeline: Pipeline,
    served: ServedModel,
    queue: JobQueue,
    lapsing: JobQueue,
    runner: TroubledRunner,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It fails before it looks after its lease."""
    monkeypatch.setattr(worker_module, "POLL_S", 60)
    job_id = await submit(service, served, *SIX)
    other = await submit(service, served, "MMMMM")
    runner.hold(SIX[0])
    async with working(make_worker(replace(service, queue=lapsing), pipeline, served)):
        await until(has_asked(runner, *SIX[:2]), "it has the first two")
        heir = await queue.take(MINE, "heir")
        assert heir is not None
        assert heir.job.id == job_id

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(run_module, "encode_reply", fail)
            runner.hold()
            await until(has_asked(runner, "MMMMM"), "it goes on with the next job")
        await until(lambda: is_over(queue, other), "the next job is over")
    await queue.renew(heir)
    assert f"{job_id}/input.jsonl" in files_of(place)


async def is_over(queue: JobQueue, job_id: str) -> bool:
    return await is_in(queue, job_id, *ENDED)


async def test_a_job_of_other_weights_begins_anew(
    service: JobService,
    pipeline: Pipeline,
    served: ServedModel,
    queue: JobQueue,
    runner: TroubledRunner,
    store: JobStore,
    place: str,
) -> None:
    job_id = await submit(service, served, *SIX, "MWM")
    runner.hold(*SIX[3:])
    async with working(make_worker(service, pipeline, served)):
        await until(lambda: is_at(queue, job_id, 3), "three windows are done")
    runner.hold()
    num_before = len(runner.asked)
    newer = ServedModel(MINI, "v2", {"trained": False}, runner)
    async with working(make_worker(service, pipeline, newer)):
        job = await ended(queue, job_id)
        await until(lambda: only(place, job), "the rest is deleted")
    assert sorted(runner.asked[num_before:]) == sorted([*SIX, "MWM"])
    assert lengths_in(store, job) == [5, 4, 3, 6, 7, 8, None]
    _, manifest = read(store, job)
    assert (job.order.tag, manifest["tag"]) == (newer.tag, newer.tag)
    assert (job.progress.next, job.progress.num_failed, job.progress.residues) == (7, 1, 33)


async def test_a_job_that_names_a_version_waits_for_it(
    service: JobService, pipeline: Pipeline, served: ServedModel, queue: JobQueue, runner: TroubledRunner
) -> None:
    name = f"{served.model.name}:{served.version}"
    limits = Limits(3, 5000, 1000)
    job_id, _ = await service.submit(fasta(*SIX), name, served, JobOptions(), limits, "me", "")
    newer = ServedModel(MINI, "v2", {"trained": False}, runner)
    async with working(make_worker(service, pipeline, newer)):
        other = await submit(service, newer, *SIX)
        await ended(queue, other)
        assert await is_in(queue, job_id, "queued")
    promoted = JobWorker(service.queue, service.store, pipeline, {name: served}, service.measures)
    async with working(promoted):
        job = await ended(queue, job_id)
    assert (job.state, job.order.model, job.order.tag) == ("done", name, served.tag)


async def test_a_job_that_workers_vanish_with_is_held_to_be_the_cause(
    worker: JobWorker,
    service: JobService,
    served: ServedModel,
    queue: JobQueue,
    lapsing: JobQueue,
    runner: TroubledRunner,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_module, "MAX_TRIES", 2)
    job_id = await submit(service, served, *SIX)
    for number in range(2):
        assert await lapsing.take(MINE, f"vanishes {number}")
    async with working(worker):
        job = await ended(queue, job_id)
        await until(lambda: is_empty(place), "its files are gone")
    assert (job.state, job.reason) == ("failed", "2 workers vanished at sequence 0")
    assert runner.calls == []


async def test_a_last_try_may_succeed(
    worker: JobWorker,
    service: JobService,
    served: ServedModel,
    queue: JobQueue,
    lapsing: JobQueue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_module, "MAX_TRIES", 2)
    job_id = await submit(service, served, *SIX)
    assert await lapsing.take(MINE, "vanishes")
    async with working(worker):
        assert (await ended(queue, job_id)).state == "done"


async def test_a_redis_that_forgot_what_was_noted_makes_no_result_with_a_gap(
    service: JobService,
    pipeline: Pipeline,
    served: ServedModel,
    queue: JobQueue,
    lapsing: JobQueue,
    runner: TroubledRunner,
    store: JobStore,
    client: redis.asyncio.Redis,
) -> None:
    """It was started again with an older snapshot, or a replica that was behind took over."""
    job_id = await submit(service, served, *SIX)
    keys = [f"pes:job:{job_id}", f"pes:job:{job_id}:parts"]
    runner.hold(*SIX[2:])
    async with working(make_worker(replace(service, queue=lapsing), pipeline, served)):
        await until(lambda: is_at(queue, job_id, 2), "two windows are done")
        snapshot = [await client.dump(key) for key in keys]
        runner.hold(*SIX[4:])
        await until(lambda: is_at(queue, job_id, 4), "two more are done")
        for key, value in zip(keys, snapshot, strict=True):
            assert value is not None
            await client.restore(key, 0, value, replace=True)
        runner.hold()
        job = await ended(queue, job_id)
    assert lengths_in(store, job) == [5, 4, 3, 6, 7, 8]


# Stores and Redis in trouble


@pytest.mark.parametrize("where", ["a window", "the result", "the input"])
async def test_a_store_in_trouble_is_waited_for_and_nothing_is_computed_again(
    worker: JobWorker,
    service: JobService,
    served: ServedModel,
    queue: JobQueue,
    runner: TroubledRunner,
    store: JobStore,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_well = threading.Event()
    places: dict[str, tuple[Any, str]] = {"a window": (store, "write"), "the result": (run_module, "write")}
    owner, name = places.get(where, (store, "entries"))
    use = getattr(owner, name)

    def refuse(*arguments: Any) -> Any:
        if not is_well.is_set():
            raise FULL
        return use(*arguments)

    monkeypatch.setattr(owner, name, refuse)
    job_id = await submit(service, served, *SIX)
    async with working(worker):
        trouble = "the sequences cannot be read" if where == "the input" else "the results cannot be written"
        reason = f"waiting: {trouble} (No space left on device)"
        await until(lambda: waits_for(queue, job_id, reason), "it is said")
        is_well.set()
        job = await ended(queue, job_id)
    assert (job.state, job.reason) == ("done", "")
    assert lengths_in(store, job) == [5, 4, 3, 6, 7, 8]
    assert sorted(runner.asked) == sorted(SIX)


async def test_a_store_that_stays_away_fails_the_job_in_the_end(
    worker: JobWorker,
    service: JobService,
    served: ServedModel,
    queue: JobQueue,
    store: JobStore,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_module, "STORE_PATIENCE_S", 0)

    def refuse(*_: object) -> None:
        raise FULL

    monkeypatch.setattr(store, "write", refuse)
    job_id = await submit(service, served, *SIX)
    async with working(worker):
        job = await ended(queue, job_id)
        await until(lambda: is_empty(place), "its files are gone")
    assert (job.state, job.reason) == ("failed", "OSError: [Errno 28] No space left on device")


async def test_an_input_that_is_gone_fails_the_job(
    worker: JobWorker, service: JobService, served: ServedModel, queue: JobQueue, store: JobStore
) -> None:
    job_id = await submit(service, served, *SIX)
    store.delete(job_id)
    async with working(worker):
        job = await ended(queue, job_id)
    assert job.state == "failed"
    assert job.reason.startswith("FileNotFoundError")


async def test_what_is_done_stays_done_though_the_rest_cannot_be_deleted(
    worker: JobWorker,
    service: JobService,
    served: ServedModel,
    queue: JobQueue,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has_tried = threading.Event()

    def refuse(*_: object) -> None:
        has_tried.set()
        raise PermissionError("not yours")

    monkeypatch.setattr(store, "keep_only", refuse)
    job_id = await submit(service, served, *SIX)
    async with working(worker):
        await asyncio.to_thread(has_tried.wait)
        assert (await ended(queue, await submit(service, served, "MKT"))).state == "done"
    job = await queue.get(job_id)
    assert job.state == "done"
    assert lengths_in(store, job) == [5, 4, 3, 6, 7, 8]


async def test_a_redis_that_is_away_while_a_window_is_computed_costs_nothing_that_was_computed(
    served: ServedModel,
    runner: TroubledRunner,
    measures: Measures,
    data_dir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = EmbeddedRedis(data_dir, max_memory_mb=64)
    server.start()
    client = connect(Settings(data_dir=data_dir))
    store = JobStore(str(data_dir / "jobs"), scratch=data_dir / "scratch")
    queue = JobQueue(client, LEASE_S, TTL_S)
    service = JobService(queue, store, ANY, measures)
    job_id = await submit(service, served, *SIX)
    runner.hold(*SIX[2:])
    try:
        async with working(make_worker(service, Pipeline(Cache(client, 60, 6)), served)):
            await until(lambda: is_at(queue, job_id, 2), "two windows are done")
            await until(has_asked(runner, *SIX[:4]), "two are under way")
            server.stop()
            runner.hold()

            async def has_noticed() -> bool:
                return f"job {job_id} waits for Redis" in caplog.text

            await until(has_noticed, "the next window cannot be noted")
            server = EmbeddedRedis(data_dir, max_memory_mb=64)
            server.start()
            job = await ended(queue, job_id)
        assert (job.state, job.tries) == ("done", 0)
        assert lengths_in(store, job) == [5, 4, 3, 6, 7, 8]
        assert sorted(runner.asked) == sorted(SIX)
    finally:
        await client.aclose()
        server.stop()


async def test_a_worker_whose_redis_goes_away_while_it_takes_a_job_goes_on(
    client: redis.asyncio.Redis,
    lapsing: JobQueue,
    service: JobService,
    pipeline: Pipeline,
    served: ServedModel,
    queue: JobQueue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id = await submit(service, served, *SIX)
    hgetall, troubles = client.hgetall, [redis.ConnectionError("nobody is there")]

    async def hgetall_once_away(name: str) -> Any:
        if troubles:
            raise troubles.pop()
        return await hgetall(name)

    monkeypatch.setattr(client, "hgetall", hgetall_once_away)
    async with working(make_worker(replace(service, queue=lapsing), pipeline, served)):
        await until(lambda: has_none(troubles), "it asks what it has taken")
        assert (await ended(queue, job_id)).state == "done"


async def has_none(troubles: Sequence[Exception]) -> bool:
    return not troubles


async def test_a_worker_without_a_redis_waits_for_one(
    served: ServedModel, measures: Measures, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(Settings(data_dir=data_dir))
    store = JobStore(str(data_dir / "jobs"), scratch=data_dir / "scratch")
    service = JobService(JobQueue(client, LEASE_S, TTL_S), store, ANY, measures)
    server = EmbeddedRedis(data_dir, max_memory_mb=64)
    try:
        async with working(make_worker(service, Pipeline(Cache(client, 60, 6)), served)):

            async def has_noticed() -> bool:
                return "no job can be taken" in caplog.text

            await until(has_noticed, "it says so")
            server.start()
            job_id = await submit(service, served, *SIX)
            assert (await ended(service.queue, job_id)).state == "done"
    finally:
        await client.aclose()
        server.stop()


# How far it is


async def test_what_is_under_way_is_told_before_a_window_is_done(
    worker: JobWorker, service: JobService, served: ServedModel, queue: JobQueue, runner: TroubledRunner
) -> None:
    job_id = await submit(service, served, *SIX)
    runner.hold(SIX[0])
    async with working(worker):

        async def is_told() -> bool:
            job = await queue.get(job_id)
            return (job.progress.next, job.num_done, job.num_residues_done) == (0, 1, 4)

        await until(is_told, "the second window's one sequence of 4 residues is counted")
        runner.hold()
        job = await ended(queue, job_id)
    assert (job.live_sequences, job.live_residues, job.num_done) == (0, 0, 6)


class SlowlyAnswering(JobQueue):
    """What is noted is noted at once, and acknowledged when `release` is set."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        super().__init__(client, LEASE_S, TTL_S)
        self.release = asyncio.Event()

    async def advance(self, *arguments: Any) -> None:
        await super().advance(*arguments)
        await self.release.wait()


async def test_nothing_is_counted_twice_while_a_window_is_noted(
    client: redis.asyncio.Redis,
    service: JobService,
    pipeline: Pipeline,
    served: ServedModel,
    runner: TroubledRunner,
) -> None:
    queue = SlowlyAnswering(client)
    service = replace(service, queue=queue)
    job_id = await submit(service, served, *SIX[:3])
    runner.hold(SIX[0])
    seen: list[int] = []
    renew = queue.renew

    async def watch(lease: Lease, **fields: Any) -> None:
        await renew(lease, **fields)
        seen.append((await queue.get(job_id)).num_done)

    queue.renew = watch  # type: ignore[method-assign]
    async with working(make_worker(service, pipeline, served)):

        async def is_told(count: int) -> bool:
            return (await queue.get(job_id)).num_done == count

        await until(lambda: is_told(1), "the second window is counted")
        runner.hold()
        await until(lambda: is_at(queue, job_id, 1), "the first window is noted")
        assert await is_told(2), "the second still counts"
        num_seen = len(seen)

        async def has_looked() -> bool:
            return len(seen) > num_seen + 5

        await until(has_looked, "it was told a few times more")
        assert max(seen) <= 2, "the third sequence is not begun yet"
        queue.release.set()
        await ended(queue, job_id)


async def test_a_window_is_as_much_as_is_computed_in_a_while(
    worker: JobWorker,
    service: JobService,
    served: ServedModel,
    queue: JobQueue,
    runner: TroubledRunner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the least on, twice as much each time; two windows are under way before the first is done."""
    monkeypatch.setattr(windows_module, "WINDOW_TOKENS", (10, 40))
    monkeypatch.setattr(windows_module, "WINDOW_S", 3600)
    job_id = await submit(service, served, *["M" * 5 + letter * 5 for letter in "ACDEFGHIKL"])
    async with working(worker):
        await ended(queue, job_id)
    assert sorted(len(call) for call in runner.calls) == [1, 1, 2, 2, 4]


async def test_a_window_holds_no_more_than_its_bytes(
    worker: JobWorker,
    service: JobService,
    served: ServedModel,
    queue: JobQueue,
    runner: TroubledRunner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large_windows(monkeypatch)
    monkeypatch.setattr(run_module, "WINDOW_BYTES", 20 * MINI.dim * 2)
    sequences = ["M" * 10, "K" * 10, "T" * 50, "A" * 10, "Y" * 10]
    job_id = await submit(service, served, *sequences, pooled=False)
    async with working(worker):
        await ended(queue, job_id)
    assert sorted(runner.calls) == sorted([sequences[:2], sequences[2:3], sequences[3:]])
