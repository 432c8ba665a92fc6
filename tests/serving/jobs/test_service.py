"""The queue and the files of jobs together: cancelled, swept, counted."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time

import pytest
import redis.asyncio

from models.catalogue import find
from serving.errors import StoreUnavailable, UnknownJob
from serving.jobs import queue as queue_module
from serving.jobs.measures import Measures
from serving.jobs.queue import JobQueue
from serving.jobs.records import new_id
from serving.jobs.schemas import JobOptions
from serving.jobs.service import ORPHAN_S, JobService
from serving.jobs.store import Entry, JobStore
from serving.runners import ServedModel
from serving.sequences import Limits
from tests.serving.jobs.conftest import ANY, fasta, files_of, folders_of, order

TEN = "MKTAYIAKQR"


async def submit(service: JobService, served: ServedModel) -> str:
    job_id, _ = await service.submit(
        fasta(TEN), served.model.name, served, JobOptions(), Limits(5, 20, 10), "me", "k"
    )
    return job_id


def write(store: JobStore, job_id: str) -> None:
    with store.writing_input(job_id) as file:
        file.write(Entry("p0", 10, TEN).to_line())


async def test_a_cancelled_job_has_no_files(
    service: JobService, served: ServedModel, queue: JobQueue, place: str
) -> None:
    job_id = await submit(service, served)
    assert await service.cancel(await queue.get(job_id))
    assert folders_of(place) == set()
    assert (await queue.get(job_id)).state == "cancelled"


async def test_cancelling_again_deletes_what_the_first_time_could_not(
    service: JobService, served: ServedModel, queue: JobQueue, place: str
) -> None:
    job_id = await submit(service, served)
    assert await queue.cancel(await queue.get(job_id))  # and its answer was lost
    assert not await service.cancel(await queue.get(job_id))
    assert folders_of(place) == set()


async def test_cancelling_what_is_done_keeps_its_result(
    service: JobService, served: ServedModel, queue: JobQueue, store: JobStore, place: str
) -> None:
    job_id = await submit(service, served)
    lease = await queue.take(["esm2_mini"], "t")
    assert lease is not None
    store.write(job_id, "result", b"x")
    await queue.end(lease, state="done", result="result")
    assert not await service.cancel(await queue.get(job_id))
    assert f"{job_id}/result" in files_of(place)
    assert (await queue.get(job_id)).state == "done"


async def test_results_whose_time_is_over_are_deleted_and_later_forgotten(
    client: redis.asyncio.Redis,
    store: JobStore,
    measures: Measures,
    served: ServedModel,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = JobQueue(client, lease_s=60, ttl_s=0)
    service = JobService(queue, store, ANY, measures)
    job_id, waiting = await submit(service, served), order()
    lease = await queue.take(["esm2_mini"], "t")
    assert lease is not None
    await queue.submit(waiting, ANY, "")
    write(store, waiting.id)
    await service.sweep()
    assert folders_of(place) == {job_id, waiting.id}
    await queue.end(lease, state="done", result="result")
    monkeypatch.setattr(queue_module, "REMEMBERED_S", 0)
    await service.sweep()
    assert folders_of(place) == {waiting.id}
    assert (await queue.get(job_id)).is_expired
    await service.sweep()
    with pytest.raises(UnknownJob):
        await queue.get(job_id)
    assert (await queue.get(waiting.id)).state == "queued"


async def test_files_of_no_job_are_deleted_when_their_submission_has_long_ended(
    service: JobService, store: JobStore, queue: JobQueue, place: str
) -> None:
    long_ago = int(time.time() - ORPHAN_S - 10)
    orphan, young, old_job = f"{long_ago}_{'a' * 32}", new_id(), order()
    known = f"{long_ago}_{'b' * 32}"
    await queue.submit(type(old_job)(**{**vars(old_job), "id": known}), ANY, "")
    for job_id in (orphan, young, known):
        write(store, job_id)
    await service.sweep()
    assert folders_of(place) == {young, known}


async def test_a_sweep_where_nothing_was_ever_stored_does_nothing(service: JobService, place: str) -> None:
    await service.sweep()
    assert folders_of(place) == set()


class SlowQueue(JobQueue):
    """Redis takes a submission, and its answer comes when it may."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        super().__init__(client, lease_s=60, ttl_s=60)
        self.is_there, self.may_go_on = asyncio.Event(), asyncio.Event()

    async def submit(self, *arguments: object) -> str:
        taken = await super().submit(*arguments)  # type: ignore[arg-type]
        self.is_there.set()
        await self.may_go_on.wait()
        return taken


async def test_a_client_who_leaves_while_the_job_is_queued_leaves_a_whole_job_or_none(
    client: redis.asyncio.Redis, store: JobStore, measures: Measures, served: ServedModel, place: str
) -> None:
    queue = SlowQueue(client)
    service = JobService(queue, store, ANY, measures)
    task = asyncio.create_task(submit(service, served))
    await queue.is_there.wait()
    task.cancel()
    await asyncio.sleep(0)
    queue.may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    _, jobs = await queue.list("me", 0, 10)
    assert folders_of(place) == {job.id for job in jobs}


class Unheard(JobQueue):
    """Redis takes a submission, and its answer is lost."""

    async def submit(self, *arguments: object) -> str:
        await super().submit(*arguments)  # type: ignore[arg-type]
        raise StoreUnavailable("no answer")


async def test_a_job_that_redis_may_have_keeps_its_input(
    client: redis.asyncio.Redis, store: JobStore, measures: Measures, served: ServedModel, place: str
) -> None:
    queue = Unheard(client, lease_s=60, ttl_s=60)
    service = JobService(queue, store, ANY, measures)
    with pytest.raises(StoreUnavailable):
        await submit(service, served)
    _, jobs = await queue.list("me", 0, 10)
    assert len(jobs) == 1
    assert folders_of(place) == {job.id for job in jobs}


async def test_nothing_is_left_of_a_client_who_leaves_before(
    service: JobService,
    served: ServedModel,
    client: redis.asyncio.Redis,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_there, may_go_on = threading.Event(), threading.Event()
    to_line = Entry.to_line

    def slowly(entry: Entry) -> bytes:
        is_there.set()
        assert may_go_on.wait(20)
        return to_line(entry)

    monkeypatch.setattr(Entry, "to_line", slowly)
    task = asyncio.create_task(submit(service, served))
    await asyncio.to_thread(is_there.wait)
    task.cancel()
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert folders_of(place) == set()
    assert await client.dbsize() == 0


async def test_depths_are_counted_by_model(
    service: JobService, queue: JobQueue, served: ServedModel, measures: Measures
) -> None:
    """By whatever name of it a job asked."""
    for model in ("esm2_mini", "esm2_mini:v1", "prot_t5"):
        await queue.submit(order(model=model), ANY, "")
    assert await queue.take(["esm2_mini"], "t")
    other = dataclasses.replace(served, model=find("prot_t5"))
    await service.note_depths({"esm2_mini": served, "esm2_mini:v1": served, "prot_t5": other})

    def counted(gauge: str, model: str) -> float:
        value: float = getattr(measures, gauge).labels(model)._value.get()
        return value

    assert [counted("queued", model) for model in ("esm2_mini", "prot_t5")] == [1, 1]
    assert [counted("running", model) for model in ("esm2_mini", "prot_t5")] == [1, 0]
    assert 0 <= counted("oldest", "prot_t5") < 60


async def test_where_the_input_cannot_be_written_the_store_is_named_and_nothing_is_left(
    service: JobService, served: ServedModel, store: JobStore, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(store, "writing_input", refuse)
        broken.setattr(store, "delete", refuse)
        with pytest.raises(
            StoreUnavailable, match=r"the files of jobs cannot be reached \(No space left on device\)"
        ):
            await submit(service, served)
    job_id = await submit(service, served)
    assert folders_of(place) == {job_id}


async def test_a_job_is_cancelled_though_its_files_cannot_be_deleted(
    service: JobService, served: ServedModel, queue: JobQueue, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("EndpointConnectionError: Could not connect")

    job_id = await submit(service, served)
    monkeypatch.setattr(store, "delete", refuse)
    assert await service.cancel(await queue.get(job_id))
    assert (await queue.get(job_id)).state == "cancelled"
