"""Weights that nobody trained: the same for the same seed, whole, and of a realistic scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models import checkpoints
from models.attention import Attend, each_sequence
from models.backends.choice import Choice
from models.backends.portable import Portable
from models.catalogue import MINI, Model
from models.checkpoints import WEIGHTS
from models.engine import Engine
from models.packing import Pack
from models.positions import PositionBias
from models.untrained import SCORE_STD, Weights, write_untrained
from tests.models.conftest import NARROW_ESM2, SEED, SMALL_T5, WIDE_ESM2, Folders
from tests.models.references import embed, random_sequence

by_family = pytest.mark.parametrize("model", [MINI, SMALL_T5], ids=lambda model: str(model.name))


@by_family
def test_the_same_seed_writes_the_same_bytes(folders: Folders, tmp_path: Path, model: Model) -> None:
    write_untrained(tmp_path, model, SEED)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in folders.of(model).iterdir()}


@by_family
def test_another_seed_changes_every_weight(folders: Folders, tmp_path: Path, model: Model) -> None:
    write_untrained(tmp_path, model, SEED + 1)
    one, other = load_file(tmp_path / WEIGHTS), load_file(folders.of(model) / WEIGHTS)
    assert one.keys() == other.keys()
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_no_two_layers_have_the_same_weights(folders: Folders) -> None:
    weights = load_file(folders.of(MINI) / WEIGHTS)
    first, second = (weights[f"esm.encoder.layer.{i}.attention.self.query.weight"] for i in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("model", "dtype"), [(MINI, torch.float32), (SMALL_T5, torch.float16)])
def test_weights_have_the_published_precision(folders: Folders, model: Model, dtype: torch.dtype) -> None:
    assert {tensor.dtype for tensor in load_file(folders.of(model) / WEIGHTS).values()} == {dtype}


@by_family
def test_a_written_folder_is_a_checkpoint_of_its_row(folders: Folders, model: Model) -> None:
    checkpoints.verify(folders.of(model), model)


def test_the_watcher_sees_every_weight(tmp_path: Path) -> None:
    seen: list[str] = []

    def watch(weights: Weights) -> Weights:
        for name, tensor in weights:
            seen.append(name)
            yield name, tensor

    write_untrained(tmp_path, MINI, SEED, watch)
    assert len(seen) == len(load_file(tmp_path / WEIGHTS))


@pytest.mark.parametrize("model", [MINI, NARROW_ESM2, WIDE_ESM2, SMALL_T5], ids=lambda model: str(model.name))
def test_attention_scores_spread_as_they_are_meant_to(folders: Folders, model: Model) -> None:
    spreads: list[float] = []

    def watched(pack: Pack, bias: PositionBias | None) -> Attend:
        attend = each_sequence(pack, None)

        def watch(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            spreads.append(scale * torch.einsum("qhk,lhk->hql", query, key).std().item())
            return attend(query, key, value, scale)

        return watch

    backend = Portable(torch.device("cpu"), torch.float32, watched)
    engine = Engine(folders.of(model), model, choice=Choice(backend, "fp32", "", "watched"))
    embed(engine, [random_sequence(200)])
    # Measured: 1.81 to 2.07 where SCORE_STD is 2
    assert all(0.85 * SCORE_STD < spread < 1.15 * SCORE_STD for spread in spreads), spreads
    assert len(spreads) == model.num_layers


@pytest.mark.parametrize("model", [MINI, NARROW_ESM2, WIDE_ESM2, SMALL_T5], ids=lambda model: str(model.name))
def test_embeddings_tell_residues_apart(folders: Folders, model: Model) -> None:
    engine = Engine(folders.of(model), model, precision="fp32")
    (rows,) = embed(engine, [random_sequence(200)])
    assert 0.9 < rows.std() < 1.1  # Measured: 1.01 to 1.02
    correlation = np.corrcoef(rows)[~np.eye(200, dtype=bool)]
    assert np.abs(correlation).mean() < 0.6  # Measured: 0.27 to 0.46
