"""The shape of an encoder, as a checkpoint's config.json says it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.catalogue import Family

# What a config.json may say of switches that change the arithmetic; the engine knows no other way.
# None: the switch may be absent, as transformers' default is the way that the engine goes
_SWITCHES: Mapping[Family, Mapping[str, tuple[Any, ...]]] = {
    "esm2": {
        "model_type": ("esm",),
        "position_embedding_type": ("rotary",),
        "emb_layer_norm_before": (False, None),
        "token_dropout": (True,),
        "hidden_act": ("gelu", None),
        "rope_theta": (10_000.0, None),
    },
    "t5": {"model_type": ("t5",), "feed_forward_proj": ("relu", "gated-gelu", None)},
}


class CheckpointError(Exception):
    """The folder is no usable checkpoint; the message is one line that says why."""


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of an encoder, as its config.json says. See `Model` for the names."""

    num_layers: int
    dim: int
    num_heads: int
    head_dim: int
    feed_forward_dim: int
    vocab_size: int
    norm_eps: float
    is_gated: bool = False
    num_buckets: int = 0
    max_distance: int = 0


def read_config(folder: Path, family: Family) -> EncoderConfig:
    """The encoder's shape from config.json.

    Raises:
        CheckpointError: missing, not JSON, of another family, or with a switch that the engine lacks.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no config.json") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is no config: a JSON object is needed")
    for key, allowed in _SWITCHES[family].items():
        if (found := config.get(key)) not in allowed:
            known = " or ".join(repr(value) for value in allowed if value is not None)
            raise CheckpointError(f"{path}: {key} is {found!r}, the engine needs {known}")
    return _esm2_config(_Numbers(path, config)) if family == "esm2" else _t5_config(_Numbers(path, config))


@dataclass(frozen=True)
class _Numbers:
    """The numbers of a config.json, each checked as it is read."""

    path: Path
    config: Mapping[str, Any]

    def count(self, key: str, default: int | None = None) -> int:
        number = self._read(key, default)
        if not isinstance(number, int) or number <= 0:
            raise CheckpointError(f"{self.path}: config has {key} = {number!r}, not a positive whole number")
        return number

    def real(self, key: str) -> float:
        number = self._read(key, None)
        if not isinstance(number, int | float) or not 0 < number < math.inf:
            raise CheckpointError(f"{self.path}: config has {key} = {number!r}, not a positive number")
        return float(number)

    def _read(self, key: str, default: int | None) -> Any:
        if key not in self.config and default is None:
            raise CheckpointError(f"{self.path} lacks {key!r}")
        return self.config.get(key, default)


def _esm2_config(numbers: _Numbers) -> EncoderConfig:
    dim, num_heads = numbers.count("hidden_size"), numbers.count("num_attention_heads")
    return EncoderConfig(
        num_layers=numbers.count("num_hidden_layers"),
        dim=dim,
        num_heads=num_heads,
        head_dim=dim // num_heads,
        feed_forward_dim=numbers.count("intermediate_size"),
        vocab_size=numbers.count("vocab_size"),
        norm_eps=numbers.real("layer_norm_eps"),
    )


def _t5_config(numbers: _Numbers) -> EncoderConfig:
    return EncoderConfig(
        num_layers=numbers.count("num_layers"),
        dim=numbers.count("d_model"),
        num_heads=numbers.count("num_heads"),
        head_dim=numbers.count("d_kv"),
        feed_forward_dim=numbers.count("d_ff"),
        vocab_size=numbers.count("vocab_size"),
        norm_eps=numbers.real("layer_norm_epsilon"),
        is_gated=numbers.config.get("feed_forward_proj") == "gated-gelu",
        num_buckets=numbers.count("relative_attention_num_buckets"),
        max_distance=numbers.count("relative_attention_max_distance", default=128),
    )
