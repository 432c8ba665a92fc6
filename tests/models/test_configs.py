"""config.json as the shape of an encoder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from models.catalogue import MINI
from models.configs import CheckpointError, read_config
from models.folders import write_config
from models.untrained import untrained_config
from tests.models.conftest import SMALL_T5, Folders
from tests.models.damage import change_config


def test_a_config_says_the_shape_of_its_encoder(folders: Folders) -> None:
    assert read_config(folders.of(MINI), "esm2") == untrained_config(MINI)
    assert read_config(folders.of(SMALL_T5), "t5") == untrained_config(SMALL_T5)


def test_an_activation_that_the_engine_lacks_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path, "t5", untrained_config(SMALL_T5), torch.float32)
    change_config(tmp_path, feed_forward_proj="gated-silu")
    with pytest.raises(CheckpointError, match="feed_forward_proj is 'gated-silu'"):
        read_config(tmp_path, "t5")


def test_an_old_t5_config_without_a_maximal_distance_means_128(tmp_path: Path) -> None:
    # Source: transformers T5Config; the key is younger than ProtT5
    write_config(tmp_path, "t5", dataclasses.replace(untrained_config(SMALL_T5), max_distance=64), torch.float32)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["relative_attention_max_distance"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(tmp_path, "t5").max_distance == 128
