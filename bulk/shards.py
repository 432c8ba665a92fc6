"""One file of embeddings: Parquet, HDF5 in UniProt's form, or a Zarr in a zip."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bulk.workload import Form
from serving.results import PARQUET_KEY, Result, write

SUFFIXES: Mapping[Form, str] = {"parquet": ".parquet", "h5": ".h5", "zarr": ".zarr.zip"}
ROW_GROUP = 4096  # rows of pooled embeddings
_RESIDUES_ROW_GROUP = 64


def shard_name(index: int, form: Form) -> str:
    return f"shard-{index:07d}{SUFFIXES[form]}"


def write_shard(
    path: Path,
    form: Form,
    ids: Sequence[str],
    lengths: Sequence[int],
    embeddings: Sequence[np.ndarray],
    about: Mapping[str, Any],
) -> None:
    """A shard's file.

    Args:
        embeddings: one for each id: (D,) if `about["pooled"]`, else (L, D), of the dtype `about["dtype"]`.
    Raises:
        OSError: it cannot be written.
    """
    _WRITERS[form](path, _Rows(ids, lengths, embeddings), about)


@dataclass(frozen=True)
class _Rows:
    """What is in a shard, by places."""

    ids: Sequence[str]
    lengths: Sequence[int]
    embeddings: Sequence[np.ndarray]

    def flat(self, dtype: str) -> np.ndarray:
        """All values, one after another."""
        if not self.embeddings:
            return np.zeros(0, dtype)
        return np.concatenate([embedding.reshape(-1) for embedding in self.embeddings])


def _write_parquet(path: Path, rows: _Rows, about: Mapping[str, Any]) -> None:
    """Columns id, length, embedding (D values); per residue the embedding is flattened, with its shape."""
    import pyarrow as pa
    from pyarrow import parquet

    kind, dim = pa.from_numpy_dtype(np.dtype(about["dtype"])), about["dim"]
    columns: dict[str, Any] = {"id": pa.array(rows.ids, pa.string()), "length": pa.array(rows.lengths, pa.int32())}
    flat = rows.flat(about["dtype"])
    if about["pooled"]:
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(flat, kind), dim)
    else:
        starts = np.cumsum([0, *(embedding.size for embedding in rows.embeddings)], dtype=np.int64)
        columns["embedding"] = pa.LargeListArray.from_arrays(pa.array(starts), pa.array(flat, kind))
        shapes = np.array([embedding.shape for embedding in rows.embeddings], np.int32).reshape(-1)
        columns["shape"] = pa.FixedSizeListArray.from_arrays(pa.array(shapes, pa.int32()), 2)
    table = pa.table(columns).replace_schema_metadata({PARQUET_KEY: json.dumps(dict(about))})
    # Embeddings have no values in common for a dictionary, and nobody looks for the least of them
    parquet.write_table(
        table,
        path,
        row_group_size=ROW_GROUP if about["pooled"] else _RESIDUES_ROW_GROUP,
        compression="zstd",
        use_dictionary=False,
        write_statistics=["id", "length"],
    )


def _write_h5(path: Path, rows: _Rows, about: Mapping[str, Any]) -> None:
    """A data set for each id."""
    write(path, "h5", map(Result, rows.ids, rows.lengths, rows.embeddings), about)


def _write_zarr(path: Path, rows: _Rows, about: Mapping[str, Any]) -> None:
    """Arrays `embedding`, (N, D) or all residues (R, D), and `offsets`, (N + 1,) rows where each id's begin.

    The ids are JSON among the attributes: Zarr 3 has no settled form for texts.
    """
    import zarr
    from zarr.storage import ZipStore

    counts = [1 if about["pooled"] else length for length in rows.lengths]
    with ZipStore(path, mode="w") as store:
        root = zarr.create_group(store, attributes={**about, "ids": list(rows.ids)})
        matrix = rows.flat(about["dtype"]).reshape(-1, about["dim"])
        # An array without rows has no chunk
        chunks = (max(1, min(len(matrix), 4096)), about["dim"])
        root.create_array("embedding", shape=matrix.shape, dtype=matrix.dtype, chunks=chunks)[:] = matrix
        for name, values in (("length", np.array(rows.lengths, np.int32)), ("offsets", np.cumsum([0, *counts]))):
            chunk = (max(1, len(values)),)
            root.create_array(name, shape=values.shape, dtype=values.dtype, chunks=chunk)[:] = values


_WRITERS: Mapping[Form, Callable[..., None]] = {
    "parquet": _write_parquet,
    "h5": _write_h5,
    "zarr": _write_zarr,
}
