"""Result files of jobs, read back by the libraries that people read them with."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
import pyarrow.parquet
import pytest
from numpy.testing import assert_array_equal

from serving import results
from serving.errors import InvalidRequest
from serving.results import MEDIA_TYPES, Format, Result, check_format, check_id, file_name, write

FORMATS: tuple[Format, ...] = get_args(Format)
FORMS = [
    (format, pooled) for format in FORMATS for pooled in (True, False) if (format, pooled) != ("parquet", False)
]
D = 4
FSIZE = resource.RLIMIT_FSIZE


def about(pooled: bool = True, dtype: str = "float16") -> dict[str, Any]:
    return {
        "model": "esm2_mini",
        "tag": "esm2_mini:1",
        "trained": False,
        "precision": "fp32",
        "dtype": dtype,
        "layer": "last",
        "pooling": "mean over residues" if pooled else "none: one row a residue",
        "window": None,
        "pooled": pooled,
        "dim": D,
    }


def embedding(number: int, pooled: bool = True, dtype: str = "float16") -> np.ndarray:
    """Full of the number; of as many residues, if not pooled."""
    return np.full(D if pooled else (number, D), number, dtype)


def some(pooled: bool = True, dtype: str = "float16") -> list[Result]:
    """Not in the order of their ids; c and a are of one sequence, b failed."""
    return [
        Result("c", 3, embedding(3, pooled, dtype)),
        Result("b", 5, None, "has a W"),
        Result("a", 3, embedding(3, pooled, dtype)),
        Result("ünï 蛋白", 7, embedding(7, pooled, dtype)),
    ]


def written(folder: Path, format: Format, pooled: bool, dtype: str, found: list[Result]) -> Path:
    path = folder / file_name(format, pooled)
    write(path, format, found, about(pooled, dtype))
    return path


def read_npz(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Embeddings by id, and the manifest."""
    with np.load(path, allow_pickle=False) as arrays:
        ids = [str(id) for id in arrays["ids"]]
        there = {id: f"embedding_{index}" for index, id in enumerate(ids) if f"embedding_{index}" in arrays}
        return {id: arrays[name] for id, name in there.items()}, json.loads(str(arrays["manifest"]))


def read_h5(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with h5py.File(path) as file:
        return {id: dataset[()] for id, dataset in file.items()}, dict(file.attrs)


def read_parquet(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    table = pyarrow.parquet.read_table(path)
    rows = [row for row in table.to_pylist() if row["embedding"] is not None]
    dtype = table.schema.field("embedding").type.value_type.to_pandas_dtype()
    manifest = json.loads(table.schema.metadata[results.PARQUET_KEY.encode()])
    return {row["id"]: np.array(row["embedding"], dtype) for row in rows}, manifest


def count_npz(path: Path) -> int:
    with np.load(path, allow_pickle=False) as arrays:
        return sum(name.startswith("embedding_") for name in arrays)


def count_h5(path: Path) -> int:
    with h5py.File(path) as file:
        return len(file)


def count_parquet(path: Path) -> int:
    return int(pyarrow.parquet.read_metadata(path).num_rows)


COUNTERS = {"npz": count_npz, "h5": count_h5, "parquet": count_parquet}
READERS = {"npz": read_npz, "h5": read_h5, "parquet": read_parquet}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("format", "pooled"), FORMS)
def test_what_was_written_is_read(tmp_path: Path, format: Format, pooled: bool, dtype: str) -> None:
    found = some(pooled, dtype)
    embeddings, manifest = READERS[format](written(tmp_path, format, pooled, dtype, found))
    wanted = {result.id: result.embedding for result in found if result.embedding is not None}
    assert embeddings.keys() == wanted.keys()
    for id, value in wanted.items():
        assert_array_equal(embeddings[id], value, strict=True)
    said = {name: value for name, value in about(pooled, dtype).items() if name != "window"}
    assert {name: manifest[name] for name in said} == said


@pytest.mark.parametrize("format", FORMATS)
def test_an_embedding_may_be_a_view(tmp_path: Path, format: Format) -> None:
    column = np.arange(2 * D, dtype=np.float16).reshape(D, 2)[:, 1]
    embeddings, _ = READERS[format](written(tmp_path, format, True, "float16", [Result("a", 3, column)]))
    assert_array_equal(embeddings["a"], column)


def test_a_npz_has_every_sequence_in_order(tmp_path: Path) -> None:
    path = written(tmp_path, "npz", True, "float16", some())
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["ids"].tolist() == ["c", "b", "a", "ünï 蛋白"]
        assert int(arrays["sequence_count"]) == 4
        assert str(arrays["storage_type"]) == "list_of_arrays"
        assert "embedding_1" not in arrays
        assert json.loads(str(arrays["manifest"])) == {
            **about(),
            "lengths": [3, 5, 3, 7],
            "errors": {"1": "has a W"},
        }


def test_a_h5_has_a_data_set_for_each_id_and_says_which_failed(tmp_path: Path) -> None:
    with h5py.File(written(tmp_path, "h5", False, "float16", some(pooled=False))) as file:
        assert set(file) == {"a", "c", "ünï 蛋白"}
        assert (file["a"].shape, file["a"].dtype, file["a"].chunks) == ((3, D), np.float16, None)
        assert h5py.h5g.get_objinfo(file.id, b"a").mtime == 0, "equal results make equal files at any time"
        assert file.id.links.get_info("ünï 蛋白".encode()).cset == h5py.h5t.CSET_UTF8
        assert json.loads(file.attrs["errors"]) == {"b": "has a W"}
        assert json.loads(file.attrs["window"]) is None
        assert file.attrs["trained"] == np.False_


def test_a_h5_of_failures_alone_names_all_of_them(tmp_path: Path) -> None:
    found = [Result(f"p{index}", 5, None, f"failure {index}") for index in range(100_000)]
    embeddings, manifest = read_h5(written(tmp_path, "h5", True, "float16", found))
    assert embeddings == {}
    assert json.loads(manifest["errors"]) == {result.id: result.error for result in found}


@pytest.mark.parametrize("rows_per_group", [0, 1, 2, 3, 4, 5])
def test_a_parquet_has_every_sequence_in_order(
    tmp_path: Path, rows_per_group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "ROW_GROUP_BYTES", rows_per_group * D * 2)
    file = pyarrow.parquet.ParquetFile(written(tmp_path, "parquet", True, "float16", some()))
    assert file.num_row_groups == -(-4 // max(1, rows_per_group))
    assert [str(field.type) for field in file.schema_arrow] == [
        "string",
        "int32",
        "fixed_size_list<element: halffloat>[4]",
        "string",
    ]
    table = file.read()
    assert table["id"].to_pylist() == ["c", "b", "a", "ünï 蛋白"]
    assert table["length"].to_pylist() == [3, 5, 3, 7]
    assert table["embedding"].to_pylist() == [[3] * 4, None, [3] * 4, [7] * 4]
    assert table["error"].to_pylist() == [None, "has a W", None, None]
    assert read_parquet(tmp_path / "embeddings.parquet")[1] == about()


@pytest.mark.parametrize("found", [[], [Result("a", 5, None, "has a W")] * 2], ids=["nothing", "failures"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_file_without_embeddings_is_a_file(tmp_path: Path, format: Format, found: list[Result]) -> None:
    embeddings, manifest = READERS[format](written(tmp_path, format, True, "float16", found))
    assert (embeddings, manifest["model"]) == ({}, "esm2_mini")


@pytest.mark.parametrize("format", FORMATS)
def test_an_id_that_is_accepted_is_kept_and_one_that_is_not_would_be_lost(tmp_path: Path, format: Format) -> None:
    ids = [
        "sp|P12345|NAME",
        "a/b",
        "/a",
        "a/",
        ".",
        "./a",
        "",
        "\0",
        "a\0",
        "a\0b",
        "\ud800",
        " a ",
        "a.",
        "b",
        "a" * 256,
    ]
    accepted = [id for id in ids if check_id(id, format) is None]
    found = [Result(id, 3, embedding(index)) for index, id in enumerate(accepted)]
    embeddings, _ = READERS[format](written(tmp_path, format, True, "float16", found))
    assert {id: int(value[0]) for id, value in embeddings.items()} == {id: i for i, id in enumerate(accepted)}
    for id in set(ids) - set(accepted):
        path = tmp_path / "lost"
        try:
            write(path, format, [Result("first", 3, embedding(3)), Result(id, 3, embedding(3))], about())
        except (TypeError, ValueError):
            continue
        assert READERS[format](path)[0].keys() != {"first", id}, id


@pytest.mark.parametrize(
    ("id", "format", "others"),
    [
        ("a/b", "h5", "npz or parquet"),
        (".", "h5", "npz or parquet"),
        ("..", "h5", "npz or parquet"),
        ("a\0", "npz", "parquet"),
        ("a\0", "h5", "parquet"),
        ("\ud800", "parquet", "npz"),
    ],
)
def test_an_id_that_cannot_be_kept_is_told_where_it_can(id: str, format: Format, others: str) -> None:
    reason = check_id(id, format)
    assert reason is not None
    assert repr(id) in reason
    assert reason.endswith(f"; ask for {others}")


def test_two_equal_ids_in_a_h5_are_an_error_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name already exists"):
        write(tmp_path / "x", "h5", [Result("a", 3, embedding(3))] * 2, about())
    assert list(tmp_path.iterdir()) == []


def test_parquet_is_for_pooled_embeddings_only() -> None:
    for format, pooled in FORMS:
        check_format(format, pooled)
    with pytest.raises(InvalidRequest, match="ask for h5 or npz"):
        check_format("parquet", pooled=False)


def test_files_have_names_and_media_types() -> None:
    assert [file_name(format, pooled) for format, pooled in FORMS] == [
        "embeddings.npz",
        "embeddings.npz",
        "per-protein.h5",
        "per-residue.h5",
        "embeddings.parquet",
    ]
    assert MEDIA_TYPES.keys() == set(FORMATS)


@pytest.mark.parametrize(("format", "pooled"), FORMS)
def test_equal_results_make_equal_files(tmp_path: Path, format: Format, pooled: bool) -> None:
    first, second = (tmp_path / name for name in "ab")
    write(first, format, some(pooled), about(pooled))
    write(second, format, iter(some(pooled)), about(pooled))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("format", FORMATS)
def test_results_are_written_while_they_come_and_none_is_kept(
    tmp_path: Path, format: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer holds the one that it got last, and asks for the next; what came before is in the file."""
    count, path = 100_000, tmp_path / "x"
    monkeypatch.setattr(results, "ROW_GROUP_BYTES", 1000 * D * 2)
    alive = most_alive = 0

    def forget() -> None:
        nonlocal alive
        alive -= 1

    sizes: list[int] = []

    def stream() -> Iterator[Result]:
        nonlocal alive, most_alive
        noise = np.random.default_rng(0)
        for index in range(count):
            if index % (count // 4) == 0:
                sizes.append(path.stat().st_size)
            value = noise.random(D, np.float32).astype(np.float16)
            weakref.finalize(value, forget)
            alive += 1
            most_alive = max(most_alive, alive)
            yield Result(f"p{index}", 3, value)
            del value

    write(path, format, stream(), about())
    sizes.append(path.stat().st_size)
    assert (alive, most_alive) == (0, 2)
    steps = np.diff(sizes)
    assert len(steps) == 4
    assert steps.min() > count // 4 * D * 2 / 2, "a quarter of the results are a quarter of the file, or nearly"
    assert COUNTERS[format](path) == count


class NoMore(Exception):
    pass


@pytest.mark.parametrize("error", [NoMore(), OSError("of the results"), KeyboardInterrupt()], ids=type)
@pytest.mark.parametrize(("format", "pooled"), FORMS)
def test_where_results_end_with_an_error_nothing_is_left(
    tmp_path: Path, format: Format, pooled: bool, error: BaseException
) -> None:
    def stream() -> Iterator[Result]:
        yield from some(pooled)
        raise error

    with pytest.raises(type(error)) as caught:
        write(tmp_path / "x", format, stream(), about(pooled))
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, 3, 3000])
@pytest.mark.parametrize("format", FORMATS)
def test_a_disk_that_is_full_is_said_and_nothing_is_left(tmp_path: Path, format: Format, count: int) -> None:
    path = tmp_path / "x"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        write(path, format, (Result(f"p{index}", 3, embedding(3)) for index in range(count)), about())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("format", "pooled"), FORMS)
def test_a_disk_may_be_full_at_any_byte(
    tmp_path: Path, format: Format, pooled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may not grow beyond a limit, as on a disk with so much left."""
    monkeypatch.setattr(results, "ROW_GROUP_BYTES", 50 * D * 2)
    path = tmp_path / "x"
    found = [Result(f"p{index}", 3, embedding(index % 50, pooled)) for index in range(300)]
    write(path, format, found, about(pooled))
    size = path.stat().st_size
    for limit in range(0, size, size // 40):
        unlimited = resource.getrlimit(FSIZE)
        resource.setrlimit(FSIZE, (limit, unlimited[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                write(path, format, found, about(pooled))
        finally:
            resource.setrlimit(FSIZE, unlimited)
        assert list(tmp_path.iterdir()) == []
    assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE) == 0, "HDF5 has closed all its files"


def test_a_h5_stops_at_the_first_error_of_its_disk(tmp_path: Path) -> None:
    """Else it would go on to the end of the job. That there is room again does not help what was lost."""
    unlimited = resource.getrlimit(FSIZE)
    asked: list[int] = []

    def stream() -> Iterator[Result]:
        for index in range(1000):
            asked.append(index)
            resource.setrlimit(FSIZE, (100_000 if index == 500 else unlimited[0], unlimited[1]))
            yield Result(f"p{index}", 3, np.ones(1000, np.float16))

    try:
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path / "x", "h5", stream(), about())
    finally:
        resource.setrlimit(FSIZE, unlimited)
    assert asked[-1] in (500, 501)
    assert list(tmp_path.iterdir()) == []


class ShortDisk(io.FileIO):
    """Writes 100 bytes at most at once."""

    def write(self, data: Any, /) -> int:
        return super().write(memoryview(data)[:100])


class ShortH5Disk(results._H5Disk, ShortDisk):
    pass


def test_a_h5_takes_as_many_pieces_as_its_disk_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_H5Disk", ShortH5Disk)
    found = [Result("a", 999, np.arange(999 * D, dtype=np.float32).reshape(999, D))]
    embeddings, _ = read_h5(written(tmp_path, "h5", False, "float32", found))
    assert_array_equal(embeddings["a"], found[0].embedding)


def test_the_libraries_of_the_formats_are_loaded_when_one_writes() -> None:
    code = "import sys, serving.results; sys.exit('h5py' in sys.modules or 'pyarrow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
