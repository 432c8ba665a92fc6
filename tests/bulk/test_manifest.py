"""What is gone on with, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from bulk.folder import TEMPORARY, Folder
from bulk.manifest import NAME, CannotResume, Manifest, Shard
from bulk.plan import Failure

ABOUT = {"model": "esm2_mini", "dtype": "float16"}


def shard(index: int, size_bytes: int = 3, content: str = "x") -> Shard:
    name, failures = f"shard-{index}", [Failure(f"bad{index}", 4, "why")]
    return Shard(index, name, "d", content, size_bytes, 1, 1, 1, 1, 1, 1, 0, 0.1, "fp32", failures)


def open_again(folder: Folder, about: dict[str, str] = ABOUT) -> Manifest:
    return Manifest(folder, about, may_resume=True)


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """A file can be appended to in the first, not in the second."""
    made = Folder(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")
    made.make()
    return made


def test_what_was_noted_is_there_again(folder: Folder) -> None:
    manifest = Manifest(folder, ABOUT, may_resume=False)
    for index in range(3):
        folder.write(f"shard-{index}", lambda path: path.write_bytes(b"abc"))
        manifest.add(shard(index))
    manifest.close()
    again = open_again(folder)
    assert sorted(again.shards) == [0, 1, 2]
    assert [failure.id for failure in again.failures()] == ["bad0", "bad1", "bad2"]
    again.close()


def test_a_shard_without_its_whole_file_is_missing(folder: Folder) -> None:
    manifest = Manifest(folder, ABOUT, may_resume=False)
    folder.write("shard-1", lambda path: path.write_bytes(b"ab"))
    manifest.add(shard(0))
    manifest.add(shard(1))
    manifest.close()
    again = open_again(folder)
    assert again.shards == {}
    again.close()


def test_a_line_that_was_being_written_is_none(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    manifest = Manifest(folder, ABOUT, may_resume=False)
    folder.write("shard-0", lambda path: path.write_bytes(b"abc"))
    manifest.add(shard(0))
    manifest.close()
    with (tmp_path / NAME).open("ab") as file:
        file.write(b'{"index":1,"na')
    again = open_again(folder)
    again.add(shard(1))
    again.close()
    assert [line.count(b"index") for line in (tmp_path / NAME).read_bytes().splitlines()] == [0, 1, 1]


@pytest.mark.parametrize("change", [{"model": "prot_t5"}, {"dtype": "float32"}, {"new": "setting"}])
def test_other_settings_are_refused_by_name(folder: Folder, change: dict[str, str]) -> None:
    Manifest(folder, ABOUT, may_resume=False).close()
    with pytest.raises(CannotResume, match=next(iter(change))):
        open_again(folder, {**ABOUT, **change})


def test_an_old_run_is_gone_on_with_only_if_asked(folder: Folder) -> None:
    Manifest(folder, ABOUT, may_resume=False).close()
    with pytest.raises(CannotResume, match="--resume"):
        Manifest(folder, ABOUT, may_resume=False)


def test_a_file_that_fails_is_not_there_and_leaves_nothing(folder: Folder) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        folder.write("shard-0", fail)
    assert folder.names() == []


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY}1-shard-0").write_bytes(b"half")
    (tmp_path / "shard-1").write_bytes(b"whole")
    folder = Folder(str(tmp_path))
    folder.remove_unfinished()
    assert folder.names() == ["shard-1"]
