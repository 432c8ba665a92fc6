"""The packed T5 encoder against transformers, and against itself in other company and other blocks."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from models import attention
from models.catalogue import Model
from models.checkpoints import weight_shapes
from models.engine import Engine
from models.folders import write_config, write_weights
from models.untrained import untrained_config
from tests.models.conftest import SMALL_T5, WIDE_T5, Folders
from tests.models.references import (
    embed,
    random_sequence,
    t5_by_transformers,
    worst_relative_error,
)

# Position buckets are full from a distance of 128 on
LENGTHS = (1, 2, 33, 129, 800, 7)
SEQUENCES = [random_sequence(length, seed) for seed, length in enumerate(LENGTHS)]


@dataclass(frozen=True)
class Batch:
    """The sequences embedded together, per residue, in float32."""

    model: Model
    folder: Path
    engine: Engine
    embeddings: list[np.ndarray]


@pytest.fixture(scope="module", params=[SMALL_T5, WIDE_T5], ids=lambda model: str(model.name))
def batch(request: pytest.FixtureRequest, folders: Folders) -> Batch:
    model: Model = request.param
    engine = Engine(folders.of(model), model, precision="fp32")
    return Batch(model, folders.of(model), engine, embed(engine, SEQUENCES))


def test_a_mixed_batch_equals_transformers_residue_by_residue(batch: Batch) -> None:
    expected = t5_by_transformers(batch.folder, SEQUENCES)
    worst = max(map(worst_relative_error, batch.embeddings, expected))
    assert worst <= 1e-5  # Measured: 5.5e-7 (small), 8.2e-7 (ProtT5's widths)


def test_many_blocks_of_queries_give_what_one_gives(small_t5: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = [random_sequence(length) for length in (32, 299, 7)]  # and the end token
    whole = embed(small_t5, sequences)
    for max_numbers in (1, 4 * 300 * 7, 4 * 300 * 299):  # blocks of 1, of 7 and of 299 queries in the longest
        monkeypatch.setattr(attention, "MAX_BIAS_NUMBERS", max_numbers)
        cut = embed(small_t5, sequences)
        assert max(map(worst_relative_error, cut, whole)) <= 5e-6  # Measured: 8.5e-7


def test_a_rare_residue_is_read_as_x(small_t5: Engine) -> None:
    as_x, *others = embed(small_t5, [f"MK{letter}LV" for letter in "XUZOB"])
    assert all(np.array_equal(other, as_x) for other in others)


def test_a_gated_feed_forward_equals_transformers(tmp_path: Path) -> None:
    config = dataclasses.replace(untrained_config(SMALL_T5), is_gated=True)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator) / math.sqrt(shape[1])
        if len(shape) == 2
        else torch.ones(shape)
        for name, shape in weight_shapes("t5", config).items()
    }
    write_config(tmp_path, "t5", config, torch.float32)
    write_weights(tmp_path, weights.items())
    found = embed(Engine(tmp_path, SMALL_T5, precision="fp32"), SEQUENCES)
    expected = t5_by_transformers(tmp_path, SEQUENCES)
    assert max(map(worst_relative_error, found, expected)) <= 1e-5  # Measured: 1.3e-6
