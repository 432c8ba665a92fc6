"""Weights that nobody trained: seeded, of a real architecture, with activations of a realistic scale.

For wiring, tests and benchmarks. Every description of such a model says that it is untrained.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from models.catalogue import Model
from models.checkpoints import weight_shapes
from models.configs import EncoderConfig
from models.folders import ESM2_VOCAB_SIZE, PROT_T5_VOCAB_SIZE, write_config, write_weights

Weights = Iterator[tuple[str, torch.Tensor]]
Watch = Callable[[Weights], Weights]

# Standard deviation of an attention score: a softmax that is neither uniform nor one-hot
SCORE_STD = 2.0


def untrained_config(model: Model) -> EncoderConfig:
    """The config of a catalogue row."""
    is_esm2 = model.family == "esm2"
    return EncoderConfig(
        num_layers=model.num_layers,
        dim=model.dim,
        num_heads=model.num_heads,
        head_dim=model.head_dim,
        feed_forward_dim=model.feed_forward_dim,
        vocab_size=ESM2_VOCAB_SIZE if is_esm2 else PROT_T5_VOCAB_SIZE,
        norm_eps=1e-5 if is_esm2 else 1e-6,
        num_buckets=0 if is_esm2 else 32,
        max_distance=0 if is_esm2 else 128,
    )


def write_untrained(folder: Path, model: Model, seed: int, watch: Watch = iter) -> None:
    """A Hugging Face folder of the model's full architecture, the same for the same seed.

    ESM-2's is float32, ProtT5's float16, as the published ones are. `watch` sees the weights go by.
    """
    config = untrained_config(model)
    dtype = torch.float32 if model.family == "esm2" else torch.float16
    write_config(folder, model.family, config, dtype)

    def stored_name(name: str) -> str:
        return name if model.family == "t5" or name.startswith("lm_head") else f"esm.{name}"

    weights = watch(_weights(model, config, seed))
    write_weights(folder, ((stored_name(name), tensor.to(dtype)) for name, tensor in weights))


def _heads(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of ESM-2's heads, so that transformers finds a complete EsmForMaskedLM."""
    return {
        "lm_head.dense.weight": (config.dim, config.dim),
        "lm_head.dense.bias": (config.dim,),
        "lm_head.layer_norm.weight": (config.dim,),
        "lm_head.layer_norm.bias": (config.dim,),
        "lm_head.bias": (config.vocab_size,),
        "contact_head.regression.weight": (1, config.num_layers * config.num_heads),
        "contact_head.regression.bias": (1,),
    }


def _weights(model: Model, config: EncoderConfig, seed: int) -> Weights:
    shapes = weight_shapes(model.family, config)
    if model.family == "esm2":
        shapes |= _heads(config)
    for name, shape in shapes.items():
        # A generator a tensor: the values depend on the name, not on the order of drawing
        digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest) >> 1)
        center, deviation = _distribution(name, shape, config, is_scaled=model.family == "esm2")
        yield name, torch.randn(shape, generator=generator) * deviation + center


def _distribution(
    name: str, shape: tuple[int, ...], config: EncoderConfig, is_scaled: bool
) -> tuple[float, float]:
    """Mean and standard deviation of a tensor's entries.

    Products keep the variance of a normalised input; query and key are set so that scores spread by
    SCORE_STD, with ESM-2 dividing them by the root of the head's width and T5 not.
    """
    if re.search(r"layer_?norm", name, re.IGNORECASE):
        return (0.0, 0.1) if name.endswith("bias") else (1.0, 0.1)
    if name.endswith("bias"):
        return 0.0, 0.1
    if "embeddings" in name or name == "shared.weight" or "relative_attention_bias" in name:
        return 0.0, 1.0
    deviation = 1.0 / math.sqrt(shape[1])
    if re.search(r"\.(query|key|q|k)\.weight$", name):
        score = SCORE_STD if is_scaled else SCORE_STD / math.sqrt(config.head_dim)
        deviation *= math.sqrt(score)
    return 0.0, deviation
