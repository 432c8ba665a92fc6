"""Outlier channels in a checkpoint: where they are, and that the model still computes what it did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models import checkpoints
from models.catalogue import MINI, Model
from models.guard import EmbeddingError
from models.untrained import write_untrained
from scripts.benchmarks.contenders import Task
from scripts.benchmarks.outliers import (
    ENTERING,
    NUM_CHANNELS,
    RATIO,
    Outliers,
    choose_outliers,
    ratios,
    sums_before_norms,
    write_with_outliers,
)
from scripts.benchmarks.peers import Transformers
from scripts.benchmarks.precision import measure
from scripts.benchmarks.workload import sample
from tests.models.conftest import SMALL_T5

SEQUENCES = sample(3, 120, seed=1)


def tasks(tmp_path: Path, model: Model) -> tuple[Task, Task, Outliers]:
    """A checkpoint, its copy with outliers, and these."""
    for name in ("plain", "uneven"):
        (tmp_path / name).mkdir()
    plain, uneven = (Task(tmp_path / name, model, "cpu", "fp32") for name in ("plain", "uneven"))
    write_untrained(plain.folder, model, seed=1)
    outliers = choose_outliers(sums_before_norms(plain, SEQUENCES), seed=1)
    write_with_outliers(plain.folder, uneven.folder, outliers)
    return plain, uneven, outliers


@pytest.mark.parametrize("model", [MINI, SMALL_T5], ids=["esm2", "t5"])
def test_few_channels_are_far_above_the_others(tmp_path: Path, model: Model) -> None:
    plain, uneven, outliers = tasks(tmp_path, model)
    assert len(outliers.channels) == NUM_CHANNELS
    before = sums_before_norms(plain, SEQUENCES)
    after = sums_before_norms(uneven, SEQUENCES)
    assert len(before) == len(outliers.gains) == 2 * model.num_layers + 1
    assert ratios(before, outliers.channels)[1] < 5
    least, largest = ratios(after, outliers.channels)
    assert 7 < least < RATIO < largest < 200  # Measured: 18 and 133 (ESM-2), 7.5 and 123 (T5)


@torch.inference_mode()
def after_first_norm(task: Task, name: str) -> torch.Tensor:
    """(T, D) of all tokens of SEQUENCES."""
    encoder = Transformers(task, torch.float32)
    seen: list[torch.Tensor] = []
    encoder.encoder.get_submodule(name).register_forward_hook(lambda *call: seen.append(call[2][0]))
    encoder.residues(SEQUENCES)
    return torch.cat(seen)


@pytest.mark.parametrize("model", [MINI, SMALL_T5], ids=["esm2", "t5"])
def test_usual_channels_keep_their_size_behind_a_norm(tmp_path: Path, model: Model) -> None:
    plain, uneven, outliers = tasks(tmp_path, model)
    first = next(iter(outliers.gains))
    before, after = (after_first_norm(task, first) for task in (plain, uneven))
    others = torch.ones(model.dim, dtype=torch.bool).index_fill(0, outliers.channels, False)
    assert float(after[:, others].std() / before[:, others].std()) == pytest.approx(1, abs=0.05)  # Measured: 1.00
    # The gains that they are multiples of are 1 and differ by 0.1; so do the biases
    assert (after[:, outliers.channels].median(0).values.abs() - ENTERING).abs().max() < 2.5


def test_a_copy_differs_in_outliers_alone(tmp_path: Path) -> None:
    plain, uneven, outliers = tasks(tmp_path, MINI)
    one, other = (checkpoints.load(task.folder, MINI)[1] for task in (plain, uneven))
    layer = "encoder.layer.1"
    for name in (
        f"{layer}.attention.self.query.weight",
        f"{layer}.intermediate.dense.bias",
        f"{layer}.LayerNorm.bias",
    ):
        assert torch.equal(one[name], other[name])
    channels = set(outliers.channels.tolist())
    for name, axis in (
        ("embeddings.word_embeddings.weight", 0),
        (f"{layer}.attention.output.dense.weight", 1),
        (f"{layer}.output.dense.bias", None),
    ):
        is_changed = one[name] != other[name] if axis is None else (one[name] != other[name]).any(axis)
        assert set(is_changed.nonzero().flatten().tolist()) == channels


def test_likeness_counts_what_failed_and_leaves_it_out() -> None:
    exact = [np.eye(3, 4), np.ones((2, 4)), np.ones((1, 4))]
    rounded: list[np.ndarray | EmbeddingError] = [exact[0], EmbeddingError("not finite"), np.full((1, 4), np.nan)]
    found = measure(exact, rounded)
    assert [found.least, found.median] == [1.0, 1.0]
    assert found.least_of_means == pytest.approx(1.0)
    assert found.num_failed == 2
    with pytest.raises(ArithmeticError, match="no sequence has a finite answer"):
        measure(exact[2:], rounded[2:])


def test_likeness_is_of_residues_and_of_means() -> None:
    exact = [np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=np.float32)]
    turned = [np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=np.float32)]
    found = measure(exact, turned)
    assert found.least == pytest.approx(0.5**0.5)
    assert found.median == 1.0
    # Means (2, 1) / 3 and (2, 2) / 3
    assert found.least_of_means == pytest.approx(6 / (5 * 8) ** 0.5)
