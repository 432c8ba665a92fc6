"""Ways in which a checkpoint of esm2_mini can be bad, and what is said about each."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from models.checkpoints import INDEX, WEIGHTS

NORM = "esm.encoder.emb_layer_norm_after.weight"


@dataclass(frozen=True)
class Damage:
    """What is done to the folder, and a part of the message about it."""

    spoil: Callable[[Path], object]
    message: str


def change_config(folder: Path, **changes: Any) -> None:
    """Sets entries of config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def change_header(folder: Path, **changes: Any) -> None:
    """Sets entries of the last norm's description in the safetensors header."""
    path = folder / WEIGHTS
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header[NORM] |= changes
    changed = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + length :])


def cut_off(folder: Path, num_bytes: int) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-num_bytes])


def write_index(folder: Path, content: object) -> None:
    (folder / INDEX).write_text(json.dumps(content))


DAMAGES = {
    # The config
    "no config": Damage(lambda f: (f / "config.json").unlink(), "no config.json"),
    "config not JSON": Damage(lambda f: (f / "config.json").write_text("{"), "not JSON"),
    "config not text": Damage(lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "not JSON"),
    "config a list": Damage(lambda f: (f / "config.json").write_text("[]"), "config"),
    "config of BERT": Damage(lambda f: change_config(f, model_type="bert"), "model_type is 'bert'"),
    "config of T5": Damage(lambda f: change_config(f, model_type="t5"), "model_type is 't5'"),
    "no width": Damage(lambda f: change_config(f, hidden_size=None), "lacks 'hidden_size'"),
    "no heads": Damage(lambda f: change_config(f, num_attention_heads=0), "config"),
    "width a text": Damage(lambda f: change_config(f, hidden_size="144"), "config"),
    "absolute positions": Damage(
        lambda f: change_config(f, position_embedding_type="absolute"), "position_embedding_type is 'absolute'"
    ),
    "norm before": Damage(lambda f: change_config(f, emb_layer_norm_before=True), "emb_layer_norm_before is True"),
    "no token dropout": Damage(lambda f: change_config(f, token_dropout=False), "token_dropout is False"),
    "another activation": Damage(lambda f: change_config(f, hidden_act="relu"), "hidden_act is 'relu'"),
    "another rotary base": Damage(lambda f: change_config(f, rope_theta=500.0), "rope_theta is 500.0"),
    "a layer more": Damage(lambda f: change_config(f, num_hidden_layers=5), "num_layers is 5, not 4"),
    "other heads": Damage(lambda f: change_config(f, num_attention_heads=4), "num_heads is 4, not 6"),
    # The files of weights
    "no weights": Damage(lambda f: (f / WEIGHTS).unlink(), "model"),
    "empty weights": Damage(lambda f: (f / WEIGHTS).write_bytes(b""), "no safetensors file"),
    "garbage": Damage(lambda f: (f / WEIGHTS).write_bytes(b"PK\x03\x04" * 1000), "no safetensors file"),
    "a page of HTML": Damage(lambda f: (f / WEIGHTS).write_text("<!DOCTYPE html>" * 99), "no safetensors file"),
    "truncated": Damage(lambda f: cut_off(f, 1), "is truncated"),
    "header cut": Damage(lambda f: cut_off(f, (f / WEIGHTS).stat().st_size - 100), "no safetensors file"),
    "not a dtype": Damage(lambda f: change_header(f, dtype="F99"), "no safetensors file: 'F99'"),
    "offsets too near": Damage(lambda f: change_header(f, data_offsets=[0, 4]), "has not the size of its shape"),
    # The weights
    "a weight missing": Damage(
        lambda f: change_weights(f, lambda w: w.pop(NORM)),
        "lacks the weight 'encoder.emb_layer_norm_after.weight'",
    ),
    "a weight too many": Damage(
        lambda f: change_weights(f, lambda w: w.update({"esm.adapter.weight": torch.ones(3)})),
        "holds 'esm.adapter.weight', which a esm2 encoder does not have",
    ),
    "a layer's weights too many": Damage(
        lambda f: change_weights(f, lambda w: w.update({"esm.encoder.layer.4.LayerNorm.bias": torch.ones(144)})),
        "holds 'esm.encoder.layer.4.LayerNorm.bias'",
    ),
    "a wrong shape": Damage(
        lambda f: change_weights(f, lambda w: w.update({NORM: torch.ones(143)})), "has shape (143,), not (144,)"
    ),
    "weights of integers": Damage(
        lambda f: change_weights(f, lambda w: w.update({NORM: w[NORM].to(torch.int8)})),
        "encoder.emb_layer_norm_after.weight is of I8, not of F16, BF16, F32",
    ),
    # The index
    "index not JSON": Damage(lambda f: (f / INDEX).write_text("{"), "no index of shards"),
    "index a list": Damage(lambda f: write_index(f, []), "no index of shards"),
    "index empty": Damage(lambda f: write_index(f, {}), "no index of shards"),
    "index of numbers": Damage(lambda f: write_index(f, {"weight_map": {NORM: 1}}), "index"),
    "index outside": Damage(
        lambda f: write_index(f, {"weight_map": {NORM: "../model.safetensors"}}), "points outside the folder"
    ),
    "index to the root": Damage(lambda f: write_index(f, {"weight_map": {NORM: "/etc/passwd"}}), "points outside"),
    "index to no file": Damage(
        lambda f: write_index(f, {"weight_map": {NORM: "model-00001-of-00001.safetensors"}}),
        "model-00001-of-00001.safetensors is missing",
    ),
    # The tokenizer
    "no tokenizer": Damage(lambda f: (f / "vocab.txt").unlink(), "holds no tokenizer"),
}
