"""Files of jobs, in a folder and in a place that fsspec reaches without one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from serving.jobs.records import new_id
from serving.jobs.store import Entry, JobStore
from serving.settings import SettingsError
from tests.serving.jobs.conftest import files_of, folders_of

ENTRIES = [
    Entry("p0", 5, "MKTAY"),
    Entry('ünï "quoted" \\ 蛋白', 4, None, "'J' at position 3 is not a residue"),
    Entry("p2", 3, "MKT", truncated_from=7),
]
BIG = bytes(range(256)) * 10_000


def written(store: JobStore, *entries: Entry) -> str:
    job_id = new_id()
    with store.writing_input(job_id) as file:
        for entry in entries:
            file.write(entry.to_line())
    return job_id


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_is_one_line(entry: Entry) -> None:
    line = entry.to_line()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert Entry.from_line(line) == entry


def test_entries_are_read_in_order_with_the_place_behind_each(store: JobStore) -> None:
    job_id = written(store, *ENTRIES)
    found = list(store.entries(job_id))
    assert [entry for entry, _ in found] == ENTRIES
    assert found[-1][1] == sum(len(entry.to_line()) for entry in ENTRIES)


def test_reading_goes_on_behind_any_entry(store: JobStore) -> None:
    job_id = written(store, *ENTRIES)
    for number, (_, behind) in enumerate(store.entries(job_id), start=1):
        assert [entry for entry, _ in store.entries(job_id, behind)] == ENTRIES[number:]


def test_jobs_do_not_see_each_others_files(store: JobStore, place: str) -> None:
    first, second = written(store, ENTRIES[0]), written(store, ENTRIES[1])
    store.write(first, "part", b"first")
    store.write(second, "part", b"second")
    assert (store.read(first, "part"), store.read(second, "part")) == (b"first", b"second")
    store.delete(first)
    assert files_of(place) == {f"{second}/input.jsonl", f"{second}/part"}
    assert folders_of(place) == {second}


def test_what_is_written_again_is_replaced(store: JobStore) -> None:
    job_id = written(store, ENTRIES[0])
    for content in (BIG, b"short"):
        store.write(job_id, "part", content)
        assert store.read(job_id, "part") == content
        assert store.size(job_id, "part") == len(content)


def test_any_range_of_a_file_can_be_read(store: JobStore) -> None:
    job_id = written(store, ENTRIES[0])
    store.write(job_id, "result", BIG)
    for start, size in [(0, 10), (255, 3), (len(BIG) - 5, 5), (1_000_000, 70_000)]:
        with store.open(job_id, "result") as file:
            file.seek(start)
            assert file.read(size) == BIG[start : start + size]


def test_a_result_is_made_on_this_machine_and_then_put_in_its_place(
    store: JobStore, place: str, data_dir: Path
) -> None:
    job_id = written(store, ENTRIES[0])
    with store.making(job_id, "embeddings.npz") as path:
        path.write_bytes(BIG)
    assert store.read(job_id, "embeddings.npz") == BIG
    assert store.size(job_id, "embeddings.npz") == len(BIG)
    assert files_of(place) == {f"{job_id}/input.jsonl", f"{job_id}/embeddings.npz"}
    scratch = data_dir / "scratch"
    assert not scratch.exists() or not list(scratch.iterdir()), "nothing of it is left behind"


def test_a_result_that_could_not_be_made_leaves_no_scratch(store: JobStore, data_dir: Path) -> None:
    job_id = written(store, ENTRIES[0])

    def make() -> None:
        with store.making(job_id, "embeddings.npz") as path:
            path.write_bytes(BIG)
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        make()
    scratch = data_dir / "scratch"
    assert not scratch.exists() or not list(scratch.iterdir())


def test_only_a_folder_has_paths_of_this_machine(store: JobStore, place: str) -> None:
    job_id = written(store, ENTRIES[0])
    path = store.local_path(job_id, "input.jsonl")
    assert (path is None) == place.startswith("memory:")
    if path is not None:
        assert path.read_bytes() == ENTRIES[0].to_line()


def test_all_but_the_result_is_deleted(store: JobStore, place: str) -> None:
    job_id, other = written(store, ENTRIES[0]), written(store, ENTRIES[1])
    for name in ("part-0", "part-1", "t-embeddings.npz", "old-embeddings.npz"):
        store.write(job_id, name, b"x")
    store.keep_only(job_id, "t-embeddings.npz")
    assert files_of(place) == {f"{job_id}/t-embeddings.npz", f"{other}/input.jsonl"}


def test_a_job_is_deleted_with_its_folder_and_once_is_enough(store: JobStore, place: str) -> None:
    job_id = written(store, *ENTRIES)
    store.write(job_id, "part", b"x")
    for _ in range(2):
        store.delete(job_id)
        assert (files_of(place), folders_of(place)) == (set(), set())
    store.delete(new_id())


def test_jobs_of_long_ago_are_found_and_nothing_else_is(store: JobStore, place: str) -> None:
    assert store.older_than(0) == []
    now = int(time.time())
    old, young = f"{now - 1000}_{'a' * 32}", f"{now - 10}_{'b' * 32}"
    for job_id in (old, young):
        with store.writing_input(job_id) as file:
            file.write(ENTRIES[0].to_line())
    system, root = fsspec.core.url_to_fs(place)
    for name in ("lost+found", "1234_abc", f"{old}.bak", f"{now - 1000}_{'A' * 32}", "..."):
        system.makedirs(f"{root}/{name}", exist_ok=True)
        system.pipe_file(f"{root}/{name}/kept", b"x")
    system.pipe_file(f"{root}/file", b"x")
    assert store.older_than(500) == [old]
    assert set(store.older_than(0)) == {old, young}


@pytest.mark.parametrize("name", ["..", "../x", "", "1234_abc", "a" * 43])
def test_what_is_no_id_never_becomes_a_path(store: JobStore, name: str) -> None:
    with pytest.raises(AssertionError):
        store.delete(name)
    with pytest.raises(AssertionError):
        store.read(name, "part")


def test_a_place_that_can_be_written_passes_and_nothing_is_left(store: JobStore, place: str) -> None:
    store.check()
    store.check()
    assert files_of(place) == set()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"^OUTPUT_URL: cannot be written \(\w+: "):
        JobStore(str(tmp_path / "file" / "jobs"), scratch=tmp_path).check()


class EndpointConnectionError(Exception):
    """As botocore's, which s3fs hands on: no OSError."""


class AwayFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """In memory, until it is away."""

    protocol = "away"
    is_away = False

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in ("ls", "rm", "cat_file", "pipe_file", "put_file", "size", "open", "makedirs"):
            return refuse if AwayFileSystem.is_away else found
        return found


def refuse(*_: object, **__: object) -> None:
    raise EndpointConnectionError("Could not connect")


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobStore:
    """A store that is away once `is_away` is set, with a job in it."""
    fsspec.register_implementation("away", AwayFileSystem, clobber=True)
    monkeypatch.setattr(AwayFileSystem, "is_away", False)
    return JobStore(f"away://{tmp_path.name}/jobs", scratch=tmp_path)


def write_input(store: JobStore, job_id: str) -> None:
    with store.writing_input(job_id) as file:
        file.write(ENTRIES[0].to_line())


def make(store: JobStore, job_id: str) -> None:
    with store.making(job_id, "result") as path:
        path.write_bytes(b"x")


@pytest.mark.parametrize(
    "use",
    [
        write_input,
        make,
        lambda store, job_id: next(store.entries(job_id)),
        lambda store, job_id: store.write(job_id, "part", b"x"),
        lambda store, job_id: store.read(job_id, "input.jsonl"),
        lambda store, job_id: store.open(job_id, "input.jsonl"),
        lambda store, job_id: store.size(job_id, "input.jsonl"),
        lambda store, job_id: store.keep_only(job_id, "input.jsonl"),
        lambda store, _: store.older_than(0),
        lambda store, job_id: store.delete(job_id),
    ],
)
def test_a_place_that_is_away_raises_an_os_error_whatever_its_own_are(
    away: JobStore, use: Callable[[JobStore, str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = written(away, ENTRIES[0])
    monkeypatch.setattr(AwayFileSystem, "is_away", True)
    with pytest.raises(OSError, match=r"^EndpointConnectionError: Could not connect$"):
        use(away, job_id)
    monkeypatch.setattr(AwayFileSystem, "is_away", False)
    use(away, job_id)


def test_a_place_that_is_away_while_the_input_is_read_raises_an_os_error(
    away: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = written(away, *ENTRIES)
    opened: BinaryIO = away.open(job_id, "input.jsonl")
    monkeypatch.setattr(away, "open", lambda *_: opened)
    found = away.entries(job_id)
    assert next(found)[0] == ENTRIES[0]
    monkeypatch.setattr(opened, "readline", refuse)
    with pytest.raises(OSError, match="Could not connect"):
        next(found)


@pytest.mark.parametrize("url", ["nosuch://bucket/prefix", "hdfs2://x"])
def test_a_kind_of_place_that_nobody_knows_is_named(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match=r"^OUTPUT_URL: .*" + url.partition(":")[0]):
        JobStore(url, scratch=tmp_path)


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "ünï 蛋白 #1 %20?"
    store = JobStore(str(folder), scratch=tmp_path)
    store.check()
    job_id = written(store, ENTRIES[0])
    assert (folder / job_id / "input.jsonl").read_bytes() == ENTRIES[0].to_line()
    assert store.older_than(-1) == [job_id]
