"""The result file of a job, in one of three formats: written while its results come, none of which is kept."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from serving.errors import InvalidRequest
from serving.outputs import NPZ_MEDIA_TYPE, NpzWriter

if TYPE_CHECKING:
    import pyarrow as pa
    from _typeshed import ReadableBuffer

Format = Literal["npz", "h5", "parquet"]

MEDIA_TYPES: Mapping[Format, str] = {
    "npz": NPZ_MEDIA_TYPE,
    "h5": "application/x-hdf5",
    "parquet": "application/vnd.apache.parquet",
}
PARQUET_KEY = "protein_embedding_service"  # of the manifest, among a Parquet file's metadata
ROW_GROUP_BYTES = 4_194_304  # of embeddings; pyarrow takes ten times as much to write a group of float16

# What is in an id that a format loses or refuses, and how it has to be. HDF5 takes names for paths; it would keep
# "..", which other readers of paths take for the folder above
_FOREIGN: Mapping[Format, tuple[re.Pattern[str], str]] = {
    "npz": (re.compile(r"\0\Z"), "without a NUL at its end"),
    "h5": (re.compile(r"\A\.{0,2}\Z|[/\0\ud800-\udfff]"), "Unicode without / or NUL; not empty, . or .."),
    "parquet": (re.compile(r"[\ud800-\udfff]"), "Unicode"),
}


@dataclass(frozen=True)
class Result:
    """What became of one sequence of a job.

    embedding: (D,) if pooled, else (L, D); None where it failed, and then `error` says why.
    """

    id: str
    length: int
    embedding: np.ndarray | None
    error: str | None = None


def file_name(format: Format, pooled: bool) -> str:
    """As people download it. The HDF5 ones are UniProt's names for files of the same form."""
    if format == "h5":
        return "per-protein.h5" if pooled else "per-residue.h5"
    return f"embeddings.{format}"


def check_format(format: Format, pooled: bool) -> None:
    """Whether a format can hold such embeddings.

    Raises:
        InvalidRequest: it cannot.
    """
    if format == "parquet" and not pooled:
        raise InvalidRequest("parquet is for pooled embeddings only; ask for h5 or npz")


def check_id(id: str, format: Format) -> str | None:
    """Why a format cannot keep this id exactly; None if it can."""
    foreign, rule = _FOREIGN[format]
    if not foreign.search(id):
        return None
    others = " or ".join(other for other, (pattern, _) in _FOREIGN.items() if not pattern.search(id))
    reason = f"the id {id!r} cannot be kept in {format} ({rule})"
    return f"{reason}; ask for {others}" if others else reason


def write(path: Path, format: Format, results: Iterable[Result], about: Mapping[str, Any]) -> None:
    """A job's results to a file; where that fails, nothing is left at the path.

    Args:
        results: taken one by one, in the order of the job. Their ids have passed `check_id`; no two are equal in
            h5, where they name data sets.
        about: what is said of all of them, fit for JSON: "model", "tag", "pooled", "dim", "dtype", ...
    Raises:
        OSError: the file cannot be written (the disk is full, say).
    """
    try:
        _WRITERS[format](path, results, about)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _write_npz(path: Path, results: Iterable[Result], about: Mapping[str, Any]) -> None:
    """As `/embeddings` makes it; the manifest has every length, and the errors by index."""
    ids: list[str] = []
    lengths: list[int] = []
    errors: dict[str, str | None] = {}
    writer = NpzWriter(path)
    try:
        for index, result in enumerate(results):
            ids.append(result.id)
            lengths.append(result.length)
            if result.embedding is None:
                errors[str(index)] = result.error
            else:
                writer.add(index, result.embedding)
        writer.finish(ids, {**about, "lengths": lengths, "errors": errors})
    except BaseException:
        writer.abandon()
        raise


class _H5Disk(io.FileIO):
    """What HDF5 writes to, so that it never sees a disk that is full.

    Left alone with one, it loses data where a data set is closed, without an error, and ends the process with a
    segmentation fault where the file is (h5py 3.16, HDF5 2.0). Here it is told that all is well; `check` is not.
    """

    error: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        rest = memoryview(data)
        size = len(rest)
        try:
            while rest:  # Linux writes 2 GB at most at once
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None, /) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = error
            return 0

    def check(self) -> None:
        """Raises the error of what could not be written, if there was one."""
        if self.error is not None:
            raise self.error

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self.check()


def _write_h5(path: Path, results: Iterable[Result], about: Mapping[str, Any]) -> None:
    """As UniProt's: a data set for each id. The manifest is the root's attributes, "errors" by id among them.

    What is no number, truth value or text is JSON there: HDF5 keeps 64 KB in attributes at most, texts elsewhere.
    """
    import h5py
    from h5py import h5d, h5p, h5s, h5t

    errors: dict[str, str | None] = {}
    with _H5Disk(path, "w+") as disk, h5py.File(disk, "w") as file:
        # File.create_dataset takes 1.4 times as long: 63 us for 1280 float16, of which writing is the lesser part
        link, form = h5p.create(h5p.LINK_CREATE), h5p.create(h5p.DATASET_CREATE)
        link.set_char_encoding(h5t.CSET_UTF8)
        form.set_obj_track_times(False)  # equal results are equal files
        for result in results:
            if result.embedding is None:
                errors[result.id] = result.error
                continue
            space, kind = h5s.create_simple(result.embedding.shape), h5t.py_create(result.embedding.dtype)
            dataset = h5d.create(file.id, result.id.encode(), kind, space, form, link)
            dataset.write(h5s.ALL, h5s.ALL, np.ascontiguousarray(result.embedding))
            disk.check()
        for name, value in {**about, "errors": errors}.items():
            file.attrs[name] = value if isinstance(value, str | int | float) else json.dumps(value)


def _write_parquet(path: Path, results: Iterable[Result], about: Mapping[str, Any]) -> None:
    """Columns id, length, embedding (D values, or null), error (or null); the manifest among the metadata."""
    import pyarrow as pa
    from pyarrow import parquet

    embedding = pa.list_(pa.from_numpy_dtype(np.dtype(about["dtype"])), about["dim"])
    schema = pa.schema(
        {"id": pa.string(), "length": pa.int32(), "embedding": embedding, "error": pa.string()},
        metadata={PARQUET_KEY: json.dumps(dict(about))},
    )
    # Embeddings have no values in common for a dictionary, and nobody looks for the least of them
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": ["id", "length"]}
    left = iter(results)
    with path.open("wb") as file, parquet.ParquetWriter(file, schema, **options) as writer:
        while group := _next_group(left, schema):
            writer.write_table(group)


def _next_group(results: Iterator[Result], schema: pa.Schema) -> pa.Table:
    """The next rows of a Parquet file; none when all results are taken."""
    import pyarrow as pa

    kind = schema.field("embedding").type
    dtype = np.dtype(kind.value_type.to_pandas_dtype())
    embeddings = np.zeros((max(1, ROW_GROUP_BYTES // (kind.list_size * dtype.itemsize)), kind.list_size), dtype)
    rows: list[tuple[str, int, bool, str | None]] = []
    for row, result in zip(embeddings, results, strict=False):
        if result.embedding is not None:
            assert (result.embedding.shape, result.embedding.dtype) == (row.shape, dtype)
            row[:] = result.embedding
        rows.append((result.id, result.length, result.embedding is None, result.error))
    ids, lengths, failed, errors = zip(*rows, strict=True) if rows else ((), (), (), ())
    flat = pa.array(embeddings[: len(rows)].reshape(-1))
    embedding = pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(failed, pa.bool_()))
    return pa.table([pa.array(ids, pa.string()), pa.array(lengths, pa.int32()), embedding, errors], schema=schema)


_WRITERS: Mapping[Format, Callable[[Path, Iterable[Result], Mapping[str, Any]], None]] = {
    "npz": _write_npz,
    "h5": _write_h5,
    "parquet": _write_parquet,
}
