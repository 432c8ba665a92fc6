"""A checkpoint that is not whole is refused when it is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.configs import CheckpointError
from models.text.loading import load
from models.text.settings import TextSettings
from tests.models.damage import cut_off

Folder = Callable[[str], Path]
CPU = torch.device("cpu")


@pytest.fixture
def damaged(text_folder: Folder, tmp_path: Path) -> Path:
    """A copy of a classifier, to be spoilt."""
    return Path(shutil.copytree(text_folder("bert"), tmp_path / "copy"))


def test_a_missing_weight_is_an_error_and_not_noise(damaged: Path) -> None:
    weights = load_file(damaged / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks the weight 'classifier\.weight'"):
        load(damaged, "classification", CPU, TextSettings())


def test_a_truncated_file_is_an_error(damaged: Path) -> None:
    cut_off(damaged, 1)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load(damaged, "classification", CPU, TextSettings())


def test_a_way_to_score_that_is_not_known_is_an_error(text_folder: Folder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(text_folder("cross-raw"), tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    config["sentence_transformers"]["activation_fn"] = "torch.nn.modules.activation.Tanh"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="scores by Tanh"):
        load(folder, "reranking", CPU, TextSettings())


def test_code_that_a_folder_holds_is_not_run(damaged: Path) -> None:
    config = json.loads((damaged / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "evil.Evil"}
    (damaged / "config.json").write_text(json.dumps(config))
    (damaged / "evil.py").write_text("raise SystemExit('it was run')\n")
    assert load(damaged, "classification", CPU, TextSettings()).dim == 3
