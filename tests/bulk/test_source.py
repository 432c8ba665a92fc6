"""Files of every kind that is read."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from bulk.source import expand, read
from serving.errors import InvalidRequest, MalformedBody
from serving.sequences import Record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.fasta").write_text(">a one\nMKT\nAYI\n")
    (tmp_path / "b.fasta.gz").write_bytes(gzip.compress(b">b\nGIV\n"))
    parquet.write_table(pa.table({"sequence": ["ACD"], "id": ["c"], "x": [1]}), tmp_path / "c.parquet")
    return tmp_path


def test_fasta_gzip_and_parquet_are_read_by_a_glob_in_order(folder: Path) -> None:
    found = list(read(expand([str(folder / "*")])))
    assert found == [Record("a", "MKTAYI"), Record("b", "GIV"), Record("c", "ACD")]


def test_a_place_that_fsspec_knows_is_read(folder: Path) -> None:
    import fsspec

    with fsspec.open("memory://bulk/d.fasta", "wb") as file:
        file.write(b">d\nMK\n")
    places = expand(["memory://bulk/*.fasta", f"file://{folder}/a.fasta"])
    assert [record.id for record in read(places)] == ["d", "a"]


def test_a_file_that_is_named_twice_is_read_once(folder: Path) -> None:
    assert len(expand([str(folder / "a.fasta"), str(folder / "a.fasta")])) == 1


@pytest.mark.parametrize("name", ["nothing.fasta", "*.nothing"])
def test_a_place_without_a_file_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="file"):
        expand([str(folder / name)])


@pytest.mark.parametrize("name", ["bad.fasta", "bad.parquet"])
def test_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("no header\n")
    with pytest.raises(MalformedBody, match=name):
        list(read([str(tmp_path / name)]))


def test_a_table_without_sequences_is_named(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"id": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(MalformedBody, match="no columns"):
        list(read([str(tmp_path / "a.parquet")]))
