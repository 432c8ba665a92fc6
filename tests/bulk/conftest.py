"""One embedded Ray for all tests of bulk, and small workloads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bulk.cluster import connect, disconnect
from bulk.workload import Form, Workload
from models import store
from scripts import import_model

Make = Callable[..., Workload]


@pytest.fixture(scope="session")
def embedded_ray() -> Iterator[None]:
    connect(None, num_cpus=2)
    yield
    disconnect()


@pytest.fixture(scope="session")
def weights() -> Path:
    """Of esm2_mini, in the tests' own model store."""
    import_model.main(["esm2_mini", "--if-missing"])
    stored = store.find("esm2_mini:latest")
    assert stored is not None
    return Path(stored.path)


@pytest.fixture
def make_workload() -> Make:
    def make(form: Form = "parquet", pooled: bool = True, shard_tokens: int = 200, **other: bool) -> Workload:
        return Workload(
            model="esm2_mini",
            tag="esm2_mini:0123",
            is_trained=False,
            pooled=pooled,
            dtype="float32",
            form=form,
            precision="fp32",
            min_length=1,
            max_length=500,
            truncate=other.get("truncate", False),
            shard_tokens=shard_tokens,
            window_residues=1000,
            window_sequences=100,
        )

    return make
