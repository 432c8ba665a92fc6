"""Packed ESM-2 against transformers and fair-esm, and against itself in other company."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from models.catalogue import MINI, Model
from models.engine import Engine
from tests.models.conftest import NARROW_ESM2, WIDE_ESM2, Folders
from tests.models.references import (
    embed,
    embed_by_fair_esm,
    esm2_by_transformers,
    fair_esm_of,
    random_sequence,
    worst_relative_error,
)

LENGTHS = (1, 2, 33, 300, 1500, 7)
SEQUENCES = [random_sequence(length, seed) for seed, length in enumerate(LENGTHS)]


@dataclass(frozen=True)
class Batch:
    """The sequences embedded together, per residue, in float32."""

    model: Model
    folder: Path
    engine: Engine
    embeddings: list[np.ndarray]


@pytest.fixture(scope="module", params=[MINI, NARROW_ESM2, WIDE_ESM2], ids=lambda model: str(model.name))
def batch(request: pytest.FixtureRequest, folders: Folders) -> Batch:
    model: Model = request.param
    engine = Engine(folders.of(model), model, precision="fp32")
    return Batch(model, folders.of(model), engine, embed(engine, SEQUENCES))


def test_a_mixed_batch_equals_transformers_residue_by_residue(batch: Batch) -> None:
    expected = esm2_by_transformers(batch.folder, SEQUENCES)
    worst = max(map(worst_relative_error, batch.embeddings, expected))
    assert worst <= 1e-5  # Measured: 5.9e-7 (esm2_mini), 7.2e-7 (320 wide), 8.9e-7 (1280 wide)


def test_a_mixed_batch_equals_fair_esm_residue_by_residue(batch: Batch) -> None:
    expected = embed_by_fair_esm(fair_esm_of(batch.folder, batch.model), SEQUENCES)
    worst = max(map(worst_relative_error, batch.embeddings, expected))
    assert worst <= 1e-5  # Measured: 7.3e-7 (esm2_mini), 6.9e-7 (320 wide), 9.1e-7 (1280 wide)


@pytest.mark.parametrize("letter", "UZOBX")
def test_a_rare_residue_is_read_as_itself(batch: Batch, letter: str) -> None:
    sequences = [f"MK{letter}LV"]
    (found,) = embed(batch.engine, sequences)
    (expected,) = esm2_by_transformers(batch.folder, sequences)
    assert worst_relative_error(found, expected) <= 1e-5  # Measured: 5.2e-7
    others = embed(batch.engine, [f"MK{other}LV" for other in "UZOBXA" if other != letter])
    assert all(np.abs(found - other).max() > 0.01 for other in others)
