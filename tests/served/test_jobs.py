"""Jobs over HTTP: every kind of body, every status, and what is left behind of what was refused: nothing."""

from __future__ import annotations

import gzip
import io
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import httpx
import numpy as np
import pyarrow.parquet
import pytest

from scripts.npz import read_npz
from tests.served.conftest import Served

GOOD = "MKTAYIAKQRQISFVKSHFSRQ"
OTHER = "MSGEEKLRQAHKNDFVPWTYC"
SUBMIT = "/embeddings/jobs/submit"
FASTA = {"content-type": "text/x-fasta"}
JSON = {"content-type": "application/json"}
TWO = f">a first\n{GOOD}\n>b\n{OTHER}\n".encode()
PATIENCE_S = 60.0  # for what takes less than a second on a quiet machine
BOMB_MEMBER_BYTES, NUM_BOMB_MEMBERS = 20_000_000, 30  # more than MAX_JOB_MB together
AT_ONCE_S = 10.0  # measured: 0.01 s, and 3 s for white space, which is looked through up to MAX_JOB_MB
FREE_WITHIN_S = 3.0


def text(*ids: str, sequence: str = GOOD) -> bytes:
    return "".join(f">{id}\n{sequence}\n" for id in ids).encode()


def random_proteins(count: int, seed: int, shortest: int = 20, longest: int = 400) -> dict[str, str]:
    draw = random.Random(seed)
    lengths = [draw.randint(shortest, longest) for _ in range(count)]
    return {f"p{i}": "".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=n)) for i, n in enumerate(lengths)}


def accepted(reply: httpx.Response) -> str:
    assert reply.status_code == 202, reply.text
    job_id: str = reply.json()["job_id"]
    assert reply.headers["location"] == reply.json()["status_link"] == f"/embeddings/jobs/{job_id}"
    return job_id


def submit(served: Served, content: bytes, headers: dict[str, str] = FASTA, **options: Any) -> str:
    return accepted(served.http.post(SUBMIT, content=content, headers=headers, params=options))


def status(served: Served, job_id: str) -> dict[str, Any]:
    reply = served.http.get(f"/embeddings/jobs/{job_id}")
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def wait_until(holds: Callable[[], bool], claim: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {claim}"
        time.sleep(0.02)


def ended(served: Served, job_id: str) -> dict[str, Any]:
    wait_until(lambda: status(served, job_id)["status"] not in ("queued", "running"), "the job is over")
    return status(served, job_id)


def result(served: Served, job_id: str) -> httpx.Response:
    found = ended(served, job_id)
    assert found["status"] == "done", found
    reply = served.http.get(found["download_link"])
    assert reply.status_code == 200
    return reply


def read_ids(content: bytes) -> dict[str, np.ndarray]:
    """Embeddings of a npz by id; those that failed are not among them."""
    arrays = read_npz(content)
    ids = [str(id) for id in arrays["ids"]]
    return {id: arrays[f"embedding_{i}"] for i, id in enumerate(ids) if f"embedding_{i}" in arrays}


def read_h5(content: bytes) -> dict[str, np.ndarray]:
    with h5py.File(io.BytesIO(content)) as file:
        return {id: dataset[()] for id, dataset in file.items()}


def read_parquet(content: bytes) -> dict[str, np.ndarray]:
    rows = pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    return {row["id"]: np.array(row["embedding"]) for row in rows if row["embedding"] is not None}


# Measured: the same bits in all batches, of values up to 4.4. Where batches differ in the last bits of float32
# (tests/chaos/running.py), float16 may round to its neighbour
TOLERANCES = {"float16": 2**-8, "float32": 1e-5}
READERS = {"npz": read_ids, "h5": read_h5, "parquet": read_parquet}
NAMES = {"npz": "embeddings.npz", "h5": "per-protein.h5", "parquet": "embeddings.parquet"}


@pytest.fixture
def jobs(data_dir_of: Path) -> Path:
    """The folder of the jobs' files."""
    return data_dir_of / "jobs"


@contextmanager
def leaving_nothing(jobs: Path) -> Iterator[None]:
    """Inside, nothing is submitted that is left there."""
    before = {path.name for path in jobs.iterdir()}
    yield
    assert {path.name for path in jobs.iterdir()} <= before
    assert not any(path.suffix == ".part" or path.name.startswith("tmp") for path in jobs.parent.iterdir())


# What is taken

OBJECT = json.dumps({"sequences": {"a": GOOD, "b": OTHER}}).encode()
BODIES: dict[str, tuple[bytes, str]] = {
    "object": (OBJECT, "application/json"),
    "array": (json.dumps({"sequences": [GOOD, OTHER], "ids": ["a", "b"]}).encode(), "application/json"),
    "charset": (OBJECT, "application/json; charset=utf-8"),
    "text/x-fasta": (TWO, "text/x-fasta"),
    "application/x-fasta": (TWO, "application/x-fasta"),
    "text/plain": (TWO, "text/plain"),
    "windows": (TWO.replace(b"\n", b"\r\n"), "text/x-fasta"),
    "gzip": (gzip.compress(TWO), "application/gzip"),
    "x-gzip": (gzip.compress(TWO), "application/x-gzip"),
    "gzip as text": (gzip.compress(TWO), "text/x-fasta"),
    "gzip of JSON": (gzip.compress(OBJECT), "application/json"),
    "two members": (gzip.compress(TWO[:30]) + gzip.compress(TWO[30:]), "application/gzip"),
}


def test_every_kind_of_body_is_the_same_job(served: Served) -> None:
    replies = {
        name: served.http.post(SUBMIT, content=content, headers={"content-type": media_type})
        for name, (content, media_type) in BODIES.items()
    }
    for name, content in (("form", TWO), ("form of gzip", gzip.compress(TWO))):
        replies[name] = served.http.post(SUBMIT, files={"file": ("proteins.fasta", content)})
    expected = None
    for name, reply in replies.items():
        job_id, said = accepted(reply), reply.json()
        assert (said["num_sequences"], said["num_residues"], said["num_invalid"]) == (2, 43, 0), name
        assert (said["num_truncated"], said["invalid"]) == (0, []), name
        found = read_ids(result(served, job_id).content)
        expected = expected or found
        assert list(found) == ["a", "b"], name
        for id, embedding in found.items():
            np.testing.assert_array_equal(embedding, expected[id], err_msg=name)


def test_options_may_stand_in_the_query_in_the_body_or_in_the_form(served: Served) -> None:
    options: dict[str, Any] = {
        "model": "esm2_t6_8M",
        "pooled": False,
        "dtype": "float32",
        "max_length": 300,
        "on_too_long": "window",
        "format": "h5",
    }
    body = json.dumps({**options, "sequences": {"a": GOOD}}).encode()
    fields = {name: str(value) for name, value in options.items()}
    ids = [
        submit(served, text("a"), **options),
        submit(served, body, JSON),
        submit(served, body, JSON, model="esm2_mini", pooled=True, format="npz"),  # those of the body count
        accepted(served.http.post(SUBMIT, files={"file": text("a")}, data=fields)),
        accepted(served.http.post(SUBMIT, files={"file": text("a")}, data={"format": "h5"}, params=options)),
    ]
    model = options.pop("model")
    for job_id in ids:
        found = status(served, job_id)
        assert (found["model"], found["options"]) == (model, options)
        reply = result(served, job_id)
        (embedding,) = read_h5(reply.content).values()
        assert embedding.shape == (22, 320)
        assert embedding.dtype == np.float32
        assert reply.headers["content-disposition"] == 'attachment; filename="per-residue.h5"'


def test_without_options_a_job_has_the_services_own(served: Served) -> None:
    found = status(served, submit(served, TWO))
    assert found["model"] == "esm2_mini"
    options = {"pooled": True, "dtype": "float16", "max_length": 5000, "on_too_long": "error", "format": "npz"}
    assert found["options"] == options


@pytest.mark.parametrize("format", ["npz", "h5", "parquet"])
def test_wrong_sequences_are_named_and_do_not_stop_the_others(served: Served, format: str) -> None:
    content = text("good") + text("short", sequence="MKT") + text("odd", sequence="MKTAYIAKQJ") + text("again")
    reply = served.http.post(SUBMIT, content=content, headers=FASTA, params={"format": format})
    job_id, said = accepted(reply), reply.json()
    assert (said["num_sequences"], said["num_residues"], said["num_invalid"]) == (4, 44, 2)
    short, odd = said["invalid"]
    assert (short["index"], short["id"], short["reason"]) == (1, "short", "3 residues; the least is 10")
    assert (odd["index"], odd["id"]) == (2, "odd")
    file = result(served, job_id)
    assert file.headers["content-disposition"] == f'attachment; filename="{NAMES[format]}"'
    assert sorted(READERS[format](file.content)) == ["again", "good"]
    found = status(served, job_id)
    assert found["progress"]["failed"] == 2
    assert [(error["index"], error["reason"]) for error in found["errors"]] == [
        (item["index"], item["reason"]) for item in said["invalid"]
    ]
    assert found["size_bytes"] == len(file.content)


def test_what_is_cut_off_is_told(served: Served) -> None:
    content = text("long", sequence="M" * 50) + text("a")
    reply = served.http.post(
        SUBMIT, content=content, headers=FASTA, params={"max_length": 30, "on_too_long": "truncate"}
    )
    assert reply.json()["num_truncated"] == 1
    manifest = json.loads(str(read_npz(result(served, accepted(reply)).content)["manifest"]))
    assert (manifest["lengths"], manifest["truncated_from"]) == ([30, 22], {"long": 50})


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_job_gives_what_requests_give(served: Served, pooled: bool, dtype: str) -> None:
    proteins = random_proteins(16, seed=11)
    options = {"pooled": pooled, "dtype": dtype}
    body = json.dumps({"sequences": proteins, **options}).encode()
    found = read_ids(result(served, submit(served, body, JSON)).content)
    assert list(found) == list(proteins)
    assert served.http.post("/embeddings/cache/clear").json()["deleted_keys"] >= len(proteins)
    for ids in (list(proteins)[::3], list(proteins)[1::3], list(proteins)[2::3]):  # in other batches
        request = {"sequences": [proteins[id] for id in ids], "ids": ids, **options}
        reply = served.http.post(
            "/embeddings/compute/esm2_mini", json=request, headers={"accept": "application/x-npz"}
        )
        for id, expected in read_ids(reply.content).items():
            assert found[id].dtype == expected.dtype == np.dtype(dtype)
            np.testing.assert_allclose(found[id], expected, rtol=0, atol=TOLERANCES[dtype])


# How a job is followed


def test_a_job_says_how_far_it_is_and_what_came_of_it(served: Served) -> None:
    job_id = submit(served, TWO)
    found = ended(served, job_id)
    assert found["job_id"] == job_id
    assert found["submitted_at"] <= found["started_at"] <= found["ended_at"]
    assert found["tag"].startswith("esm2_mini:")
    progress = found["progress"]
    assert (progress["sequences"], progress["total_sequences"]) == (2, 2)
    assert (progress["residues"], progress["total_residues"], progress["failed"]) == (43, 43, 0)
    assert (progress["residues_per_s"], progress["eta_s"]) == (None, None)
    assert 0 <= progress["cached_share"] <= 1
    assert (found["reason"], found["errors"], found["is_expired"]) == (None, [], False)
    assert found["download_link"] == f"/embeddings/jobs/{job_id}/result"


def test_jobs_are_listed_the_latest_first(served: Served) -> None:
    ids = [submit(served, TWO) for _ in range(3)]
    reply = served.http.get("/embeddings/jobs").json()
    assert [job["job_id"] for job in reply["jobs"][:3]] == ids[::-1]
    total = reply["total"]
    page = served.http.get("/embeddings/jobs", params={"start": 1, "count": 1}).json()
    assert ([job["job_id"] for job in page["jobs"]], page["total"]) == ([ids[1]], total)
    assert served.http.get("/embeddings/jobs", params={"start": total}).json() == {"total": total, "jobs": []}


@pytest.mark.parametrize("query", [{"start": -1}, {"count": 0}, {"count": 1001}, {"count": "all"}])
def test_a_page_that_is_none_is_explained(served: Served, query: dict[str, Any]) -> None:
    reply = served.http.get("/embeddings/jobs", params=query)
    assert reply.status_code == 422
    assert f"query.{next(iter(query))}" in reply.json()["detail"]


def events_of(served: Served, job_id: str) -> list[tuple[str, dict[str, Any]]]:
    """All of a stream, which ends with the job."""
    found: list[tuple[str, dict[str, Any]]] = []
    with served.http.stream("GET", f"/embeddings/jobs/{job_id}/events") as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in reply.iter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                found.append((name, json.loads(value)))
    return found


def test_progress_comes_as_events_until_the_job_is_over(served: Served) -> None:
    proteins = random_proteins(60, seed=12)
    job_id = submit(served, json.dumps({"sequences": proteins, "model": "esm2_t6_8M"}).encode(), JSON)
    found = events_of(served, job_id)
    assert [name for name, _ in found] == [data["status"] for _, data in found]
    assert found[-1][1] == status(served, job_id)
    states = [name for name, _ in found]
    assert states[-1] == "done"
    assert states == sorted(states, key=["queued", "running", "done"].index)
    shown = [data["progress"]["sequences"] for _, data in found]
    assert shown == sorted(shown)
    assert shown[-1] == 60


def test_the_events_of_what_is_over_are_one(served: Served) -> None:
    job_id = submit(served, TWO)
    ended(served, job_id)
    assert [name for name, _ in events_of(served, job_id)] == ["done"]


def test_metrics_tell_of_jobs(served: Served) -> None:
    ended(served, submit(served, TWO))

    def metrics() -> str:
        return served.http.get("/metrics").text

    wait_until(lambda: 'jobs_queued{model="esm2_mini"}' in metrics(), "a worker has looked at the queue")
    found = metrics()
    for name in ("jobs_queued", "jobs_running", "jobs_oldest_queued_seconds"):
        assert f'{name}{{model="esm2_mini"}}' in found, name
    assert 'job_windows_total{model="esm2_mini"}' in found
    assert 'job_duration_seconds_count{model="esm2_mini",state="done"}' in found


# Submitted again, cancelled, downloaded


def test_the_same_key_is_the_same_job(served: Served) -> None:
    headers = {**FASTA, "idempotency-key": f"key-{time.monotonic_ns()}"}
    first = submit(served, TWO, headers)
    assert submit(served, TWO, headers) == first
    ended(served, first)
    reply = served.http.post(SUBMIT, content=b"it is not even read", headers={**headers, "content-type": "x"})
    assert accepted(reply) == first
    assert (reply.json()["status"], reply.json()["num_sequences"]) == ("done", 2)
    assert submit(served, TWO, {**headers, "idempotency-key": headers["idempotency-key"] + "'"}) != first


@pytest.mark.parametrize("key", ["x" * 256, "a\tb"])
def test_a_key_that_is_none_is_explained(served: Served, jobs: Path, key: str) -> None:
    with leaving_nothing(jobs):
        reply = served.http.post(SUBMIT, content=TWO, headers={**FASTA, "idempotency-key": key})
    assert reply.status_code == 422
    assert "Idempotency-Key" in reply.json()["detail"]


def queue_size(served: Served) -> int:
    """Sequences that wait for a device."""
    found = served.http.get("/embeddings/model/info", params={"model": "esm2_t6_8M"}).json()
    size: int = found["batcher"]["queue_items"]
    return size


def test_a_cancelled_job_leaves_nothing_and_stays_cancelled(served: Served, jobs: Path) -> None:
    proteins = random_proteins(3000, seed=13, shortest=300)
    job_id = submit(served, json.dumps({"sequences": proteins, "model": "esm2_t6_8M"}).encode(), JSON)
    assert (jobs / job_id).is_dir()
    wait_until(lambda: queue_size(served) > 0, "it is under way")
    reply = served.http.delete(f"/embeddings/jobs/{job_id}")
    assert (reply.status_code, reply.json()["status"]) == (200, "cancelled")
    started = time.monotonic()
    other = submit(served, TWO, model="esm2_t6_8M")
    ended(served, other)
    # measured: 0.5 s; the windows that were under way take 6 s
    assert time.monotonic() - started < FREE_WITHIN_S
    wait_until(lambda: not (jobs / job_id).exists(), "its files are gone")
    for _ in range(2):
        again = served.http.delete(f"/embeddings/jobs/{job_id}")
        assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    assert [name for name, _ in events_of(served, job_id)] == ["cancelled"]
    refused = served.http.get(f"/embeddings/jobs/{job_id}/result")
    assert (refused.status_code, refused.json()["detail"]) == (409, "the job is cancelled")
    assert status(served, job_id)["download_link"] is None


def test_a_job_that_is_done_is_not_cancelled(served: Served) -> None:
    job_id = submit(served, TWO)
    before = result(served, job_id).content
    assert served.http.delete(f"/embeddings/jobs/{job_id}").json()["status"] == "done"
    assert result(served, job_id).content == before


def test_when_a_job_is_done_its_result_alone_is_kept(served: Served, jobs: Path) -> None:
    job_id = submit(served, TWO)
    ended(served, job_id)
    wait_until(lambda: len(list((jobs / job_id).iterdir())) == 1, "the rest is deleted")


def test_a_download_that_was_cut_off_goes_on(served: Served) -> None:
    job_id = submit(served, TWO)
    whole = result(served, job_id)
    link, size = f"/embeddings/jobs/{job_id}/result", len(whole.content)
    assert whole.headers["accept-ranges"] == "bytes"
    first = served.http.get(link, headers={"range": "bytes=0-99"})
    assert (first.status_code, first.headers["content-range"]) == (206, f"bytes 0-99/{size}")
    rest = served.http.get(link, headers={"range": "bytes=100-", "if-range": whole.headers["etag"]})
    assert (rest.status_code, rest.headers["content-range"]) == (206, f"bytes 100-{size - 1}/{size}")
    assert first.content + rest.content == whole.content
    last = served.http.get(link, headers={"range": "bytes=-7"})
    assert (last.status_code, last.content) == (206, whole.content[-7:])
    other = served.http.get(link, headers={"range": "bytes=100-", "if-range": '"another"'})
    assert (other.status_code, other.content) == (200, whole.content)
    beyond = served.http.get(link, headers={"range": f"bytes={size}-"})
    assert (beyond.status_code, set(beyond.json())) == (416, {"error", "detail"})


def test_a_result_that_has_expired_is_told_from_one_that_never_was(served: Served, jobs: Path) -> None:
    job_id, gone = submit(served, TWO), submit(served, TWO)
    for each in (job_id, gone):
        ended(served, each)
    served.redis.hset(f"pes:job:{job_id}", "expired", "1")
    reply = served.http.get(f"/embeddings/jobs/{job_id}/result")
    assert (reply.status_code, reply.json()["detail"]) == (410, "results are kept for 72 hours")
    found = status(served, job_id)
    assert (found["is_expired"], found["download_link"], found["size_bytes"]) == (True, None, None)
    wait_until(lambda: len(list((jobs / gone).iterdir())) == 1, "the rest is deleted")
    for path in (jobs / gone).iterdir():
        path.unlink()
    assert served.http.get(f"/embeddings/jobs/{gone}/result").status_code == 410


@pytest.mark.parametrize(
    "job_id",
    [
        "nobody",
        "1795235420_74f21b9ad20b2109891a606f11edc7f1",
        "..%2F..%2Fetc",
        "{}:errors",
        "{}:parts",
        "*",
        "x" * 5000,
    ],
)
def test_a_job_that_never_was_is_not_found(served: Served, job_id: str) -> None:
    if "{}" in job_id:
        there = submit(served, text("good") + text("short", sequence="MKT"))
        ended(served, there)
        job_id = job_id.format(there)
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "/result")):
        reply = served.http.request(method, f"/embeddings/jobs/{job_id}{path}")
        assert reply.status_code == 404, (method, path, reply.text)
        assert set(reply.json()) == {"error", "detail"}


# What is refused

MALFORMED: dict[str, tuple[bytes, str, int, str]] = {
    "no header": (GOOD.encode(), "text/x-fasta", 400, "FASTA line 1"),
    "a line before the header": (b"# proteins\n" + TWO, "text/x-fasta", 400, "FASTA line 1"),
    "nothing": (b"", "text/x-fasta", 400, "no FASTA header"),
    "nothing as JSON": (b"", "application/json", 400, "JSON"),
    "garbage": (bytes(range(256)) * 100, "text/x-fasta", 400, "byte 0 is 0"),
    "garbage without a zero": (bytes(range(1, 256)) * 100, "text/x-fasta", 400, "UTF-8"),
    "garbage as JSON": (b"\x80\x04N.", "application/json", 400, "UTF-8"),
    "latin-1": (b">\xe4\n" + GOOD.encode(), "text/x-fasta", 400, "UTF-8"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "text/plain", 400, "no text"),
    "half a JSON": (OBJECT[:-5], "application/json", 400, "has no end"),
    "JSON behind JSON": (OBJECT + b"{}", "application/json", 400, "should have ended"),
    "half a gzip": (gzip.compress(TWO * 100)[:-20], "application/gzip", 400, "gzip"),
    "a broken gzip": (gzip.compress(TWO)[:15] + b"\xff" * 40, "application/gzip", 400, "gzip"),
    "XML": (b"<xml/>", "application/xml", 415, "application/xml"),
    "an array": (b"[]", "application/json", 422, "body"),
    "no sequences": (b"{}", "application/json", 422, "sequences: missing"),
    "no sequence": (b'{"sequences": []}', "application/json", 422, "no sequence"),
    "a number": (b'{"sequences": ["MK", 7]}', "application/json", 422, "sequences[1]: 7 is not a string"),
    "an unknown option": (OBJECT[:-1] + b', "poled": true}', "application/json", 422, "poled"),
    "a wrong option": (OBJECT[:-1] + b', "dtype": "int8"}', "application/json", 422, "dtype"),
    "a wrong length": (OBJECT[:-1] + b', "max_length": 5001}', "application/json", 422, "max_length: 5001"),
    "too few ids": (
        b'{"sequences": ["MK", "MK"], "ids": ["a"]}',
        "application/json",
        422,
        "1 ids for 2 sequences",
    ),
    "twice the same id": (text("a", "b", "a"), "text/x-fasta", 422, "sequences 0 and 2 have the same id, 'a'"),
    "twice the same name": (
        f'{{"sequences": {{"a": "{GOOD}", "a": "{OTHER}"}}}}'.encode(),
        "application/json",
        422,
        "sequences 0 and 1 have the same id, 'a'",
    ),
    "a long id": (text("a", "x" * 10_000), "text/x-fasta", 422, "sequence 1: the id 'xxx"),
    "an id of nothing": (b'{"sequences": {"": "MKTAYIAKQR"}}', "application/json", 422, "sequence 0: the id ''"),
    "a boolean in quotes": (
        b'{"sequences": ["MKTAYIAKQR"], "pooled": "true"}',
        "application/json",
        422,
        "pooled: Input should be a valid boolean",
    ),
    "all invalid": (text("a", "b", sequence="MKTAYIAKQJ"), "text/x-fasta", 422, "sequence 0 (a)"),
    "an endless sequence": (b">a\n" + b"M" * 1_100_000, "text/x-fasta", 400, "longer than 1000000"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_malformed_is_explained_and_leaves_nothing(served: Served, jobs: Path, what: str) -> None:
    content, media_type, expected, detail = MALFORMED[what]
    with leaving_nothing(jobs):
        reply = served.http.post(SUBMIT, content=content, headers={"content-type": media_type})
    assert reply.status_code == expected, reply.text
    assert detail in reply.json()["detail"]
    assert len(reply.text) < 2000


@pytest.mark.parametrize(
    ("options", "expected", "detail"),
    [
        ({"format": "csv"}, 422, "query.format"),
        ({"poled": False}, 422, "query.poled"),
        ({"format": "parquet", "pooled": False}, 422, "parquet is for pooled embeddings only"),
        ({"max_length": 255, "on_too_long": "window"}, 422, "windows have 256 residues at least"),
        ({"max_length": 9}, 422, "max_length: 9 is not in 10-5000"),
        ({"model": "esm2_min"}, 404, "did you mean esm2_mini"),
        ({"model": "prot_t5"}, 404, "prot_t5"),
    ],
)
def test_wrong_options_are_explained_and_leave_nothing(
    served: Served, jobs: Path, options: dict[str, Any], expected: int, detail: str
) -> None:
    with leaving_nothing(jobs):
        replies = [
            served.http.post(SUBMIT, content=TWO, headers=FASTA, params=options),
            served.http.post(SUBMIT, json={"sequences": [GOOD], **options}),
            served.http.post(SUBMIT, files={"file": TWO}, data=options),
        ]
    for reply in replies:
        assert reply.status_code == expected, reply.text
        assert detail.removeprefix("query.") in reply.json()["detail"]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"data": {"format": "h5"}, "files": {"file": ("", b"")}}, 422),
        ({"files": [("file", ("a", TWO)), ("file", ("b", TWO))]}, 400),
        ({"files": {"file": TWO}, "data": {f"option{i}": "x" for i in range(30)}}, 400),
        ({"content": b"no form", "headers": {"content-type": "multipart/form-data"}}, 400),
        ({"content": b"no form", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400),
        ({"content": TWO, "headers": {"content-type": "application/x-www-form-urlencoded"}}, 415),
        ({"content": TWO}, 415),
    ],
    ids=["no file", "two files", "many fields", "no boundary", "no parts", "urlencoded", "no media type"],
)
def test_a_form_that_is_none_is_explained_and_leaves_nothing(
    served: Served, jobs: Path, form: dict[str, Any], expected: int
) -> None:
    with leaving_nothing(jobs):
        reply = served.http.post(SUBMIT, **form)
    assert reply.status_code == expected, reply.text
    assert set(reply.json()) == {"error", "detail"}


@pytest.mark.parametrize("id", ["..", ".", "a/b", "../../etc/passwd"])
def test_an_id_that_looks_like_a_path_is_an_id_or_refused(served: Served, jobs: Path, id: str) -> None:
    body = json.dumps({"sequences": {id: GOOD}}).encode()
    assert list(read_ids(result(served, submit(served, body, JSON)).content)) == [id]
    with leaving_nothing(jobs):
        reply = served.http.post(SUBMIT, content=body, headers=JSON, params={"format": "h5"})
    assert reply.status_code == 422
    assert "cannot be kept in h5" in reply.json()["detail"]


def test_ids_of_any_alphabet_are_kept(served: Served) -> None:
    ids = ["ünï 蛋白", "sp|P0CG48|UBC_HUMAN", "-" * 256, "'; DROP TABLE", "%2e%2e", "😀"]
    body = json.dumps({"sequences": dict.fromkeys(ids, GOOD)}).encode()
    submitted = {format: submit(served, body, JSON, format=format) for format in READERS}
    for format, job_id in submitted.items():
        assert set(READERS[format](result(served, job_id).content)) == set(ids)


BOMBS: dict[str, tuple[bytes, bytes, str]] = {
    "zeros": (b"", b"\0", "text/x-fasta"),
    "one protein": (b">a\n", b"M", "text/x-fasta"),
    "white space": (b"", b" ", "application/json"),
    "one string": (b'{"sequences": ["', b"M", "application/json"),
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_gzip_bomb_is_refused_at_once(served: Served, jobs: Path, what: str) -> None:
    head, filling, media_type = BOMBS[what]
    packed = gzip.compress(head) + gzip.compress(filling * BOMB_MEMBER_BYTES) * NUM_BOMB_MEMBERS
    assert len(packed) < 1_000_000
    started = time.monotonic()
    with leaving_nothing(jobs):
        reply = served.http.post(SUBMIT, content=packed, headers={"content-type": media_type})
    assert time.monotonic() - started < AT_ONCE_S
    assert reply.status_code in (400, 413)


def test_more_sequences_than_a_job_may_have_are_refused(served: Served, jobs: Path) -> None:
    content = "".join(f">{i}\n{GOOD}\n" for i in range(100_001)).encode()
    with leaving_nothing(jobs):
        reply = served.http.post(SUBMIT, content=content, headers=FASTA)
    assert reply.status_code == 413
    assert "the limit is 100000" in reply.json()["detail"]


def test_who_has_too_many_jobs_is_told_when_to_come_again(served: Served, jobs: Path) -> None:
    others = [f"1795235420_{i:032x}" for i in range(100)]
    served.redis.sadd("pes:jobs:active:anonymous", *others)
    try:
        with leaving_nothing(jobs):
            reply = served.http.post(SUBMIT, content=TWO, headers=FASTA)
    finally:
        served.redis.srem("pes:jobs:active:anonymous", *others)
    assert reply.status_code == 429
    assert reply.headers["retry-after"] == "30"
    assert "jobs of yours are queued or running" in reply.json()["detail"]
    submit(served, TWO)


def test_after_all_that_the_service_still_answers(served: Served) -> None:
    assert read_ids(result(served, submit(served, TWO)).content)
    assert served.http.get("/embeddings/health").json()["status"] == "healthy"
