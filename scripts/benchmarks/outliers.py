"""Checkpoints with outlier channels, as trained transformers have them and untrained weights do not.

In a trained transformer a few channels of the sum that runs through the layers are tens to thousands of times
larger than the rest, at nearly every token and with nearly the same value: they work as biases. Sources:
Dettmers et al. 2022 (LLM.int8(), arXiv 2208.07339): up to seven channels that enter products at 6 and more; Sun
et al. 2024 (Massive Activations, arXiv 2402.17762): constant values in the same channels from an early layer
on; Peng et al. 2023 (arXiv 2310.19624): so uneven sums before ESM-2's norms that they are hard to quantise.

What is changed, for NUM_CHANNELS seeded channels:

- all token embeddings get RATIO times the usual size of the sum half-way through the layers added there, with
  signs in turn, so that the mean that a layer norm takes off stays where it was;
- the rows of the output projections, of attention and feed-forward layers, become SPREAD times as large, so
  that an outlier differs from token to token;
- the gains of norms make up for it, as in training. A norm divides by a root mean square that the outliers now
  rule: all gains are multiplied by as much as that grew, and those of the outliers set so that they come out at
  ENTERING times the usual size. Behind the last norm they are of the usual size, else they would make every
  cosine a good one.

So the usual channels enter products at about the size they had, from sums as uneven as a trained model's.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from models.checkpoints import canonical_name, weight_files
from models.esm2 import TOKEN_DROPOUT_SCALE
from models.folders import write_weights
from scripts.benchmarks.contenders import Task
from scripts.benchmarks.peers import Transformers

NUM_CHANNELS = 4
RATIO = 75.0
SPREAD = 8.0
ENTERING = 6.0

# Names as of checkpoints.weight_shapes; what an embedding is multiplied by before the first layer
_EMBEDDINGS = {"embeddings.word_embeddings.weight": TOKEN_DROPOUT_SCALE, "shared.weight": 1.0}
_OUTPUTS = re.compile(r"\.(output\.dense\.(weight|bias)|SelfAttention\.o\.weight|DenseReluDense\.wo\.weight)$")
_NORMS = re.compile(r"(LayerNorm|layer_norm|emb_layer_norm_after)$")
_LAST_NORMS = ("encoder.emb_layer_norm_after", "encoder.final_layer_norm")


@dataclass(frozen=True)
class Sums:
    """What enters a norm, by channel over many tokens. median: (D,) of absolute values. square: (D,) mean."""

    median: Tensor
    square: Tensor


@dataclass(frozen=True)
class Outliers:
    """The channels, (NUM_CHANNELS,) int64, what each is at, (NUM_CHANNELS,) float32, and the gains of each norm.

    gains: by the norm's name, (D,) float32 by which those of the checkpoint are multiplied.
    """

    channels: Tensor
    values: Tensor
    gains: Mapping[str, Tensor]


def sums_before_norms(task: Task, sequences: Sequence[str]) -> dict[str, Sums]:
    """By the norm's name, as transformers' model computes it in float32."""
    encoder = Transformers(task, torch.float32)
    seen: dict[str, list[Tensor]] = {}
    for name, module in encoder.encoder.named_modules():
        if _NORMS.search(name):
            kept = seen.setdefault(name, [])
            module.register_forward_pre_hook(lambda _, inputs, kept=kept: kept.append(inputs[0][0].cpu()))
    encoder.residues(sequences)
    tokens = {name: torch.cat(kept) for name, kept in seen.items()}
    return {name: Sums(x.abs().median(0).values, x.square().mean(0)) for name, x in tokens.items()}


def ratios(sums: Mapping[str, Sums], channels: Tensor) -> tuple[float, float]:
    """The least and the largest multiple of the others' median that these channels are at, before any norm."""
    found = []
    for each in sums.values():
        others = torch.ones(len(each.median), dtype=torch.bool).index_fill(0, channels, False)
        found.append(each.median[channels] / each.median[others].median())
    multiples = torch.cat(found)
    return float(multiples.min()), float(multiples.max())


def choose_outliers(sums: Mapping[str, Sums], seed: int) -> Outliers:
    """Channels, their values, and the gains that make up for them."""
    dim = len(next(iter(sums.values())).median)
    channels = torch.from_numpy(np.random.default_rng(seed).permutation(dim)[:NUM_CHANNELS])
    value = RATIO * float(torch.stack([each.median.median() for each in sums.values()]).median())
    gains = {}
    for name, each in sums.items():
        usual = float(each.square.mean())
        added = NUM_CHANNELS * value**2 + (SPREAD**2 - 1) * float(each.square[channels].sum())
        growth = (1 + added / dim / usual) ** 0.5  # of the root mean square
        entering = 1.0 if name in _LAST_NORMS else ENTERING
        gains[name] = torch.full((dim,), growth)
        gains[name][channels] *= entering * usual**0.5 / value
    signs = torch.tensor([1.0, -1.0]).repeat(NUM_CHANNELS)[:NUM_CHANNELS]
    return Outliers(channels, signs * value, gains)


def write_with_outliers(source: Path, target: Path, outliers: Outliers) -> None:
    """A copy of a checkpoint with outlier channels; kinds of numbers as they were."""
    for path in source.iterdir():
        if "safetensors" not in path.name:
            shutil.copyfile(path, target / path.name)
    write_weights(target, _changed(source, outliers))


def _changed(source: Path, outliers: Outliers) -> Iterator[tuple[str, Tensor]]:
    for file in weight_files(source):
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
            for stored in names:
                tensor = tensors.get_tensor(stored)
                yield stored, _change(canonical_name(stored), tensor.float(), outliers).to(tensor.dtype)


def _change(name: str, tensor: Tensor, outliers: Outliers) -> Tensor:
    channels = outliers.channels
    if name in _EMBEDDINGS:
        return tensor.index_add(1, channels, (outliers.values / _EMBEDDINGS[name]).expand(len(tensor), -1))
    if _OUTPUTS.search(name):
        scale = torch.ones(len(tensor)).index_fill(0, channels, SPREAD)
        return tensor * (scale if tensor.dim() == 1 else scale[:, None])
    norm, _, kind = name.rpartition(".")
    return tensor * outliers.gains[norm] if kind == "weight" and norm in outliers.gains else tensor
