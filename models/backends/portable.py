"""torch's own operations: any device, any precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import Attention
from models.backends.base import Activation, AttendPack, Hidden, Weights
from models.packing import Pack
from models.positions import PositionBias, Rotary


@dataclass(frozen=True)
class Portable:
    """Hidden is (T, D) in `dtype`; sums and norms are float32."""

    device: torch.device
    dtype: torch.dtype
    way: Attention
    divides: ClassVar[bool] = False

    @property
    def description(self) -> str:
        return f"torch, {self.way.__name__}"

    def norm(self, weight: Tensor, bias: Tensor | None, eps: float) -> Callable[[Tensor], Hidden]:
        scale = weight.to(self.device, torch.float32)
        shift = None if bias is None else bias.to(self.device, torch.float32)

        def apply(x: Tensor) -> Hidden:
            if shift is None:
                return F.rms_norm(x, x.shape[-1:], scale, eps).to(self.dtype)
            return F.layer_norm(x, x.shape[-1:], scale, shift, eps).to(self.dtype)

        return apply

    def qkv(self, weights: Weights) -> Callable[[Hidden], Tensor]:
        return self._linear(weights)

    def activated(self, weights: Weights, activation: Activation) -> Callable[[Hidden], Hidden]:
        linear, function = self._linear(weights), F.gelu if activation == "gelu" else F.relu
        return lambda hidden: function(linear(hidden))

    def gated(self, gate: Weights, weights: Weights) -> Callable[[Hidden], Hidden]:
        opened, linear = self._linear(gate), self._linear(weights)
        return lambda hidden: F.gelu(opened(hidden), approximate="tanh") * linear(hidden)

    def added(self, weights: Weights) -> Callable[[Hidden, Tensor], None]:
        linear = self._linear(weights)

        def apply(hidden: Hidden, x: Tensor) -> None:
            x += linear(hidden)

        return apply

    def attention(
        self, pack: Pack, heads: tuple[int, int], rotary: Rotary | None = None, bias: PositionBias | None = None
    ) -> AttendPack:
        rotation: tuple[Tensor, Tensor] | None = None
        if rotary is not None:
            rotary.reach(pack.max_length)
            cos, sin = (table[pack.positions].unsqueeze(1).to(self.dtype) for table in (rotary.cos, rotary.sin))
            rotation = cos, sin
        if bias is not None:
            bias.reach(pack.max_length)
        attend = self.way(pack, bias)

        def apply(qkv: Tensor, scale: float) -> Hidden:
            query, key, value = qkv.view(-1, 3, *heads).unbind(1)
            if rotation is not None:
                query, key = rotate(query, *rotation), rotate(key, *rotation)
            return attend(query, key, value, scale).flatten(1)

        return apply

    def _linear(self, weights: Weights) -> Callable[[Tensor], Tensor]:
        weight = weights.weight.to(self.device, self.dtype)
        bias = None if weights.bias is None else weights.bias.to(self.device, self.dtype)
        return lambda x: F.linear(x, weight, bias)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (T, H, K) by angles of (T, 1, K / 2). Source: fair-esm esm/rotary_embedding.py."""
    left, right = x.chunk(2, dim=-1)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    new_left, new_right = out.chunk(2, dim=-1)
    torch.mul(left, cos, out=new_left).addcmul_(right, sin, value=-1)
    torch.mul(right, cos, out=new_right).addcmul_(left, sin)
    return out
