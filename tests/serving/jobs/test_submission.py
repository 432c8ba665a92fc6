"""Uploads that become the input of a job; what is wrong with them is told, and nothing of them is left behind."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
import redis.asyncio

from models.catalogue import MINI
from serving.errors import (
    BodyTooLarge,
    InvalidRequest,
    InvalidSequences,
    MalformedBody,
    Overloaded,
    Problem,
    ServiceError,
    StoreUnavailable,
    TooManySequences,
)
from serving.jobs import submission
from serving.jobs.measures import Measures
from serving.jobs.queue import JobQueue, Quota
from serving.jobs.records import new_id
from serving.jobs.schemas import JobOptions
from serving.jobs.service import JobService, check_key
from serving.jobs.store import Entry, JobStore
from serving.jobs.submission import Contents, write_input
from serving.results import Format
from serving.runners import ServedModel
from serving.sequences import MAX_ID_LENGTH, Limits
from serving.uploads import Upload
from tests.serving.jobs.conftest import ANY, fasta, files_of, folders_of

LIMITS = Limits(min_length=5, max_length=20, max_sequences=10)
TEN = "MKTAYIAKQR"


def text(fasta: bytes, max_bytes: int = 5000) -> Upload:
    return Upload(BytesIO(fasta), "fasta", max_bytes)


def json_upload(body: Any) -> Upload:
    return Upload(BytesIO(json.dumps(body).encode()), "json", max_bytes=1_000_000)


def write(
    store: JobStore, upload: Upload, limits: Limits = LIMITS, output: Format = "npz"
) -> tuple[list[Entry], Contents]:
    job_id = new_id()
    contents = write_input(upload, store, job_id, MINI, limits, output)
    return [entry for entry, _ in store.entries(job_id)], contents


def test_sequences_are_cleaned_and_kept_in_order(store: JobStore) -> None:
    entries, contents = write(store, text(b">b two words\nmktay\niakqr*\n>a\nMKT AYI\n>c\nMKTAY\n"))
    assert entries == [Entry("b", 10, TEN), Entry("a", 6, "MKTAYI"), Entry("c", 5, "MKTAY")]
    assert contents == Contents(num_sequences=3, num_residues=21)


def test_sequences_of_json_are_named_by_it(store: JobStore) -> None:
    entries, _ = write(store, json_upload({"sequences": {"ünï 蛋白": TEN, "b": TEN}}))
    assert [entry.id for entry in entries] == ["ünï 蛋白", "b"]
    entries, _ = write(store, json_upload({"sequences": [TEN, TEN], "ids": ["x", "y"]}))
    assert [entry.id for entry in entries] == ["x", "y"]
    entries, _ = write(store, json_upload({"sequences": [TEN, TEN]}))
    assert [entry.id for entry in entries] == ["sequence_0", "sequence_1"]


def test_what_cannot_be_embedded_is_named_and_does_not_stop_the_others(store: JobStore) -> None:
    entries, contents = write(store, fasta(TEN, "MKT", "MKTAYJ", "M" * 21, "MKTAY"))
    assert [entry.sequence for entry in entries] == [TEN, None, None, None, "MKTAY"]
    assert [entry.length for entry in entries] == [10, 3, 6, 21, 5]
    assert (contents.num_sequences, contents.num_residues, contents.num_invalid) == (5, 15, 3)
    reasons = ["3 residues; the least is 5", "'J' at position 6 is", "21 residues; the most is 20"]
    for problem, index, reason in zip(contents.problems, (1, 2, 3), reasons, strict=True):
        assert (problem.index, problem.id) == (index, f"p{index}")
        assert reason in problem.reason
        assert entries[index].error == problem.reason


def test_the_first_problems_are_listed_and_all_are_counted(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "MAX_LISTED_PROBLEMS", 2)
    entries, contents = write(store, fasta("M", TEN, "MK", "MKT", "MKTA"))
    assert contents.num_invalid == 4
    assert [problem.index for problem in contents.problems] == [0, 2]
    assert [bool(entry.error) for entry in entries] == [True, False, True, True, True]


def test_what_is_cut_off_is_counted(store: JobStore) -> None:
    entries, contents = write(store, fasta("M" * 25, TEN), Limits(5, 20, 10, "truncate"))
    assert entries == [Entry("p0", 20, "M" * 20, truncated_from=25), Entry("p1", 10, TEN)]
    assert (contents.num_truncated, contents.num_residues) == (1, 30)


def test_what_is_computed_in_windows_is_kept_whole(store: JobStore) -> None:
    entries, contents = write(store, fasta("M" * 25), Limits(5, 20, 10, "window"))
    assert (entries, contents.num_truncated) == ([Entry("p0", 25, "M" * 25)], 0)


def test_equal_sequences_may_have_different_ids(store: JobStore) -> None:
    entries, _ = write(store, fasta(TEN, TEN))
    assert [entry.sequence for entry in entries] == [TEN, TEN]


def test_as_many_sequences_as_are_allowed_are_taken_and_not_one_more(store: JobStore) -> None:
    _, contents = write(store, fasta(*[TEN] * 10))
    assert contents.num_sequences == 10
    with pytest.raises(TooManySequences, match="the limit is 10"):
        write(store, fasta(*[TEN] * 11))


def test_invalid_sequences_count_among_them(store: JobStore) -> None:
    with pytest.raises(TooManySequences):
        write(store, fasta(*["M"] * 11))


@pytest.mark.parametrize("id", ["..", ".", "a/b", "../../etc/passwd", "C:\\x", "'; --", "ünï 蛋白", "x" * 256])
def test_an_id_is_a_text_and_nothing_else(store: JobStore, id: str) -> None:
    entries, _ = write(store, json_upload({"sequences": [TEN], "ids": [id]}))
    assert entries[0].id == id


@pytest.mark.parametrize(
    "id", ["", "a\nb", "a\tb", "\u202e", "x" * (MAX_ID_LENGTH + 1), "x" * 10_000], ids=lambda id: repr(id[:9])
)
def test_an_id_that_nobody_could_read_is_refused(store: JobStore, id: str) -> None:
    rule = r"sequence 1: the id .* is not 1 to 256 printable characters"
    with pytest.raises(InvalidRequest, match=rule) as error:
        write(store, json_upload({"sequences": [TEN, TEN], "ids": ["a", id]}))
    assert len(str(error.value)) < 200, "a long one is shown in part"


@pytest.mark.parametrize("id", ["..", "a/b"])
def test_an_id_that_the_result_cannot_keep_is_refused(store: JobStore, id: str) -> None:
    upload = json_upload({"sequences": [TEN, TEN], "ids": ["a", id]})
    with pytest.raises(InvalidRequest, match=r"sequence 1: the id .* cannot be kept in h5"):
        write(store, upload, output="h5")


def test_an_id_that_is_there_twice_is_named_with_both_places(store: JobStore) -> None:
    upload = json_upload({"sequences": [TEN, TEN, "M"], "ids": ["a", "b", "a"]})
    with pytest.raises(InvalidRequest, match="sequences 0 and 2 have the same id, 'a'"):
        write(store, upload)
    with pytest.raises(InvalidRequest, match="sequences 0 and 1 have the same id, 'a'"):
        write(store, Upload(BytesIO(f'{{"sequences": {{"a": "{TEN}", "a": "{TEN}"}}}}'.encode()), "json", 1000))


def test_a_default_name_that_is_taken_is_named(store: JobStore) -> None:
    upload = text(f">sequence_1\n{TEN}\n>\n{TEN}\n".encode())
    with pytest.raises(InvalidRequest, match="sequences 0 and 1 have the same id, 'sequence_1'"):
        write(store, upload)


def test_where_nothing_can_be_embedded_every_problem_is_told(store: JobStore) -> None:
    with pytest.raises(InvalidSequences) as error:
        write(store, fasta("M", "MKTAYJ"))
    assert [(problem.index, problem.id) for problem in error.value.problems] == [(0, "p0"), (1, "p1")]
    assert isinstance(error.value.problems[0], Problem)


def test_no_sequence_at_all_is_refused(store: JobStore) -> None:
    bodies: list[Any] = [{"sequences": []}, {"sequences": {}}]
    for body in bodies:
        with pytest.raises(InvalidRequest, match="there is no sequence"):
            write(store, json_upload(body))


# Through the service


async def submit(
    service: JobService, served: ServedModel, upload: Upload, key: str = "", **options: Any
) -> tuple[str, Contents]:
    wanted = JobOptions(**options)
    limits = Limits(5, wanted.max_length or 20, 10, wanted.on_too_long)
    return await service.submit(upload, served.model.name, served, wanted, limits, "me", key)


async def test_a_submission_is_a_job_with_an_input(
    service: JobService, served: ServedModel, queue: JobQueue, store: JobStore, place: str
) -> None:
    job_id, contents = await submit(service, served, fasta(TEN, "M", "MKTAY"), key="k", dtype="float32")
    job = await queue.get(job_id)
    assert (job.state, job.order.owner, job.order.tag) == ("queued", "me", served.tag)
    assert (job.order.num_sequences, job.order.num_residues) == (3, 15)
    assert job.order.options == JobOptions(dtype="float32")
    assert contents.num_invalid == 1
    assert files_of(place) == {f"{job_id}/input.jsonl"}
    assert await queue.find_key("me", "k") == job_id


@pytest.mark.parametrize(
    ("upload", "options", "error"),
    [
        (lambda: fasta(TEN), {"format": "parquet", "pooled": False}, InvalidRequest),
        (lambda: fasta(*[TEN] * 11), {}, TooManySequences),
        (lambda: fasta("M"), {}, InvalidSequences),
        (lambda: text(f">a\n{TEN}\n>a\n{TEN}".encode()), {}, InvalidRequest),
        (lambda: text(f">a\n{TEN}\n>a/b\n{TEN}".encode()), {"format": "h5"}, InvalidRequest),
        (lambda: text(f">a\n{TEN}\n>b\n".encode() + b"\xff"), {}, MalformedBody),
        (lambda: text(f">a\n{TEN}\n>b\n{TEN}".encode(), max_bytes=20), {}, BodyTooLarge),
        (lambda: text(gzip.compress(b">a\n" + b"M" * 999)[:-9]), {}, MalformedBody),
        (lambda: json_upload({"sequences": [TEN, 7]}), {}, InvalidRequest),
    ],
    ids=["format", "too many", "all invalid", "twice", "id", "not UTF-8", "too large", "broken gzip", "no text"],
)
async def test_nothing_is_left_of_what_was_refused(
    service: JobService,
    served: ServedModel,
    client: redis.asyncio.Redis,
    place: str,
    upload: Callable[[], Upload],
    options: dict[str, Any],
    error: type[ServiceError],
) -> None:
    with pytest.raises(error):
        await submit(service, served, upload(), **options)
    assert (files_of(place), folders_of(place)) == (set(), set())
    assert await client.dbsize() == 0


async def test_nothing_is_left_of_what_was_too_much(
    queue: JobQueue, store: JobStore, measures: Measures, served: ServedModel, place: str
) -> None:
    service = JobService(queue, store, Quota(max_jobs=1, max_sequences=10), measures)
    job_id, _ = await submit(service, served, fasta(TEN))
    with pytest.raises(Overloaded):
        await submit(service, served, fasta(TEN))
    assert folders_of(place) == {job_id}


async def test_nothing_is_left_where_redis_is_away(
    dead_client: redis.asyncio.Redis, store: JobStore, measures: Measures, served: ServedModel, place: str
) -> None:
    service = JobService(JobQueue(dead_client, 60, 60), store, ANY, measures)
    with pytest.raises(StoreUnavailable):
        await submit(service, served, fasta(TEN))
    assert folders_of(place) == set()


async def test_the_same_key_is_the_same_job_and_nothing_else_is_left(
    service: JobService, served: ServedModel, place: str
) -> None:
    """As two submissions at the same time have it, neither of which finds the key at its beginning."""
    first, _ = await submit(service, served, fasta(TEN), key="k")
    again, contents = await submit(service, served, fasta(TEN, TEN), key="k")
    assert again == first
    assert contents.num_sequences == 2
    assert folders_of(place) == {first}


@pytest.mark.parametrize("key", ["k", "x" * 255, "ünï 蛋白", None])
def test_a_key_is_a_short_text(key: str | None) -> None:
    assert check_key(key) == (key or "")


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "\x7f"])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequest, match="Idempotency-Key"):
        check_key(key)
