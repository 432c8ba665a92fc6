"""How much arithmetic a set of sequences asks for, and how much of it the machine can do."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from models.catalogue import Model
from models.configs import EncoderConfig
from scripts.benchmarks.clock import timed

PEAK_TOKENS = 4096
_PRODUCTS, _REPEATS = 4, 8  # products between two looks at the clock; how often


def count_operations(model: Model, config: EncoderConfig, lengths: Sequence[int]) -> int:
    """Useful operations of an encoder on sequences of so many residues, each with its special tokens.

    A multiplication and an addition for every weight of the linear layers and every token, and twice that for
    every pair of tokens of a sequence and every column of attention: scores, and the sum of values. Norms,
    activations and the softmax are left out, as is padding.
    """
    inner = config.num_heads * config.head_dim
    projections = 3 if config.is_gated else 2
    weights = config.num_layers * config.dim * (4 * inner + projections * config.feed_forward_dim)
    tokens = [length + sum(model.num_specials) for length in lengths]
    return 2 * weights * sum(tokens) + 4 * config.num_layers * inner * sum(n * n for n in tokens)


def matrix_peak(model: Model, device: str, dtype: torch.dtype) -> float:
    """Operations per second of torch's product with the model's largest linear layer: nothing around it."""
    x = torch.randn(PEAK_TOKENS, model.dim, device=device).to(dtype)
    weight = torch.randn(model.feed_forward_dim, model.dim, device=device).to(dtype)
    bias = torch.zeros(model.feed_forward_dim, device=device, dtype=dtype)

    def multiply() -> None:
        for _ in range(_PRODUCTS):
            F.linear(x, weight, bias)

    seconds = [timed(multiply, device)[1] for _ in range(_REPEATS)]
    return _PRODUCTS * 2 * PEAK_TOKENS * model.dim * model.feed_forward_dim / statistics.median(seconds[1:])
