"""What an encoder asks of its arithmetic.

Shapes: T tokens in a pack, D width, N columns of a linear layer, H heads, K head width. What stands between a norm
and the linear layers behind it ("hidden") is in a layout of the backend's own: it goes from one of these functions
to the next and nobody else reads it. The running sum `x` is (T, D) float32 in every backend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from models.packing import Pack
from models.positions import PositionBias, Rotary

Activation = Literal["gelu", "relu"]
Hidden = Tensor
AttendPack = Callable[[Tensor, float], Hidden]  # (queries, keys and values; scale) -> hidden


@dataclass(frozen=True)
class Weights:
    """A linear layer: weight (N, D) in any float, bias (N,) or none."""

    weight: Tensor
    bias: Tensor | None = None


class Backend(Protocol):
    """norm, qkv, activated, gated and added take a layer's weights once and give the function that applies them.

    dtype: of the products. description: of the backend, in a few words. divides: whether several threads may
    compute at a time, each with the number of OpenMP threads that it has set.
    """

    divides: ClassVar[bool]

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def description(self) -> str: ...

    def norm(self, weight: Tensor, bias: Tensor | None, eps: float) -> Callable[[Tensor], Hidden]:
        """x -> hidden: layer norm, or RMS norm where there is no bias."""
        ...

    def qkv(self, weights: Weights) -> Callable[[Hidden], Tensor]:
        """hidden -> (at least T, at least 3 H K) queries, keys and values, side by side, heads in order."""
        ...

    def activated(self, weights: Weights, activation: Activation) -> Callable[[Hidden], Hidden]:
        """hidden -> activation(linear(hidden))."""
        ...

    def gated(self, gate: Weights, weights: Weights) -> Callable[[Hidden], Hidden]:
        """hidden -> gelu_tanh(gate(hidden)) * linear(hidden)."""
        ...

    def added(self, weights: Weights) -> Callable[[Hidden, Tensor], None]:
        """(hidden, x): x += linear(hidden), in place."""
        ...

    def attention(
        self, pack: Pack, heads: tuple[int, int], rotary: Rotary | None = None, bias: PositionBias | None = None
    ) -> AttendPack:
        """Softmax attention of a pack's tokens, each over those of its own sequence; heads: (H, K).

        Made once for a pack; every layer calls what it gives.
        """
        ...
