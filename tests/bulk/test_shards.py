"""Shards of every form, opened as people open them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from zarr.storage import ZipStore

from bulk.shards import write_shard
from bulk.workload import Form
from tests.bulk.conftest import Make

IDS, LENGTHS = ["a", "b|2"], [2, 3]
POOLED = [np.full(144, n, np.float32) for n in (1, 2)]
RESIDUES = [np.arange(length * 144, dtype=np.float32).reshape(length, 144) for length in LENGTHS]


def written(path: Path, form: Form, embeddings: list[np.ndarray], make_workload: Make) -> Path:
    about = make_workload(form, pooled=embeddings is POOLED).about()
    write_shard(path, form, IDS, LENGTHS, embeddings, about)
    return path


def test_pandas_reads_pooled_parquet(tmp_path: Path, make_workload: Make) -> None:
    frame: Any = pd.read_parquet(written(tmp_path / "a.parquet", "parquet", POOLED, make_workload))
    assert list(frame.columns) == ["id", "length", "embedding"]
    assert list(frame["id"]) == IDS
    np.testing.assert_array_equal(np.stack(frame["embedding"]), POOLED)


def test_pandas_reads_residues_by_their_shape(tmp_path: Path, make_workload: Make) -> None:
    frame: Any = pd.read_parquet(written(tmp_path / "a.parquet", "parquet", RESIDUES, make_workload))
    for row, expected in zip(frame.itertuples(), RESIDUES, strict=True):
        np.testing.assert_array_equal(row.embedding.reshape(row.shape), expected)


@pytest.mark.parametrize("embeddings", [POOLED, RESIDUES], ids=["pooled", "residues"])
def test_h5py_reads_a_data_set_an_id(tmp_path: Path, embeddings: list[np.ndarray], make_workload: Make) -> None:
    with h5py.File(written(tmp_path / "a.h5", "h5", embeddings, make_workload)) as file:
        assert sorted(file) == sorted(IDS)
        for id, expected in zip(IDS, embeddings, strict=True):
            np.testing.assert_array_equal(file[id][:], expected)


@pytest.mark.parametrize("embeddings", [POOLED, RESIDUES], ids=["pooled", "residues"])
def test_zarr_has_rows_by_offsets(tmp_path: Path, embeddings: list[np.ndarray], make_workload: Make) -> None:
    path = written(tmp_path / "a.zarr.zip", "zarr", embeddings, make_workload)
    with ZipStore(path, mode="r") as store:
        root: Any = zarr.open_group(store, mode="r")
        assert root.attrs["ids"] == IDS
        offsets = root["offsets"][:]
        for n, expected in enumerate(embeddings):
            rows = root["embedding"][offsets[n] : offsets[n + 1]]
            np.testing.assert_array_equal(rows.reshape(expected.shape), expected)


@pytest.mark.parametrize("form", ["parquet", "h5", "zarr"])
@pytest.mark.parametrize("pooled", [True, False])
def test_a_shard_of_failures_alone_is_empty(tmp_path: Path, form: Form, pooled: bool, make_workload: Make) -> None:
    write_shard(tmp_path / "a", form, [], [], [], make_workload(form, pooled).about())
    assert (tmp_path / "a").stat().st_size
