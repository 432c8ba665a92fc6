"""Our own kernels (models/kernels): bfloat16 products on x86 processors that have them.

Weights are laid out once as the kernels read them; what follows a product happens on each block of it while it is
in the nearest cache. A token's numbers depend on its own sequence alone, bit for bit: no sum is cut by the batch.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from models.backends.base import Activation, AttendPack, Hidden, Weights
from models.kernels.library import Kernels
from models.packing import Pack
from models.positions import PositionBias, Rotary

SIDE = 32  # rows and columns of a block; see models/kernels/blocks.h
ROWS, GELU, RELU, GATED_GELU, ADD = range(5)  # what follows a product; the same list in models/kernels/linear.c
_ACTIVATIONS = {"gelu": GELU, "relu": RELU}


@dataclass(frozen=True)
class Native:
    """Hidden is panels, (ceil(T / 32), ceil(D / 32), 32, 32) bfloat16, flat."""

    kernels: Kernels
    divides: ClassVar[bool] = True

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16

    @property
    def description(self) -> str:
        return f"own kernels, {self.kernels.instructions}"

    def norm(self, weight: Tensor, bias: Tensor | None, eps: float) -> Callable[[Tensor], Hidden]:
        scale, shift = _copied(weight), None if bias is None else _copied(bias)

        def apply(x: Tensor) -> Hidden:
            num_rows, dim = x.shape
            out = torch.empty(_panels(num_rows) * SIDE * _padded(dim), dtype=torch.bfloat16)
            self.kernels.norm(
                *(_at(x), _at(scale), _at(shift), _at(out), eps, num_rows, dim), torch.get_num_threads()
            )
            return out

        return apply

    def qkv(self, weights: Weights) -> Callable[[Hidden], Tensor]:
        strips, bias = strips_of(weights.weight), _padded_bias(weights)
        num_columns = strips.shape[0] * SIDE

        def apply(hidden: Hidden) -> Tensor:
            num_rows = _num_rows(hidden, strips)
            out = torch.empty(num_rows, num_columns, dtype=torch.bfloat16)
            self._linear(hidden, strips, bias, out, num_columns, num_rows, num_columns, ROWS)
            return out

        return apply

    def activated(self, weights: Weights, activation: Activation) -> Callable[[Hidden], Hidden]:
        return self._to_panels(strips_of(weights.weight), _padded_bias(weights), _ACTIVATIONS[activation])

    def gated(self, gate: Weights, weights: Weights) -> Callable[[Hidden], Hidden]:
        assert gate.bias is None
        assert weights.bias is None
        # 16 columns of the gate, then the same 16 of what it scales: a block of products has both
        padded = [_padded_to_blocks(layer.weight) for layer in (gate, weights)]
        pair = [weight.view(-1, SIDE // 2, weight.shape[1]) for weight in padded]
        return self._to_panels(strips_of(torch.stack(pair, 1).flatten(0, 2)), None, GATED_GELU)

    def added(self, weights: Weights) -> Callable[[Hidden, Tensor], None]:
        strips, bias = strips_of(weights.weight), _padded_bias(weights)

        def apply(hidden: Hidden, x: Tensor) -> None:
            num_rows, dim = x.shape
            self._linear(hidden, strips, bias, x, dim, num_rows, dim, ADD)

        return apply

    def attention(
        self, pack: Pack, heads: tuple[int, int], rotary: Rotary | None = None, bias: PositionBias | None = None
    ) -> AttendPack:
        num_heads, head_dim = heads
        dim = num_heads * head_dim
        cos = sin = by_distance = None
        longest = 0
        if rotary is not None:
            cos, sin = rotary.reach(pack.max_length)
        if bias is not None:
            by_distance, longest = bias.reach(pack.max_length)
            by_distance = by_distance * math.log2(math.e)

        def apply(qkv: Tensor, scale: float) -> Hidden:
            make = torch.zeros if dim % SIDE else torch.empty  # columns that nobody writes must be zero
            out = make(_panels(len(qkv)) * SIDE * _padded(dim), dtype=torch.bfloat16)
            status = self.kernels.attention(
                *(_at(qkv), _at(out), _at(pack.cu_seqlens), len(pack.lengths), qkv.shape[1], num_heads, head_dim),
                *(_at(cos), _at(sin), _at(by_distance), longest, scale, torch.get_num_threads()),
            )
            if status:
                raise MemoryError("attention")
            return out

        return apply

    def _to_panels(self, strips: Tensor, bias: Tensor | None, then: int) -> Callable[[Hidden], Hidden]:
        num_columns = strips.shape[0] * SIDE
        row_length = num_columns // 2 if then == GATED_GELU else num_columns

        def apply(hidden: Hidden) -> Hidden:
            num_rows = _num_rows(hidden, strips)
            out = torch.empty(num_rows * row_length, dtype=torch.bfloat16)
            self._linear(hidden, strips, bias, out, row_length, num_rows, num_columns, then)
            return out

        return apply

    def _linear(
        self,
        hidden: Hidden,
        strips: Tensor,
        bias: Tensor | None,
        out: Tensor,
        row_length: int,
        num_rows: int,
        num_columns: int,
        then: int,
    ) -> None:
        self.kernels.linear(
            *(_at(hidden), _at(strips), _at(bias), _at(out), row_length, num_rows, num_columns, strips.shape[1]),
            *(then, torch.get_num_threads()),
        )


def strips_of(weight: Tensor) -> Tensor:
    """A weight (N, D) as the kernels read it: (ceil(N / 32), ceil(D / 32), 2, 16, 16, 2) bfloat16."""
    padded = _padded_to_blocks(weight.to(torch.bfloat16))
    pairs = padded.view(torch.int32)  # of neighbours along D, which stay together
    half = SIDE // 2
    blocks = pairs.view(len(padded) // SIDE, 2, half, padded.shape[1] // SIDE, half)
    strips = blocks.permute(0, 3, 1, 4, 2).contiguous().view(torch.bfloat16)
    return strips.view(*strips.shape[:-1], half, 2)


def _copied(tensor: Tensor) -> Tensor:
    """In float32, apart from the file that holds it."""
    return tensor.to(torch.float32, copy=True)


def _padded_to_blocks(weight: Tensor) -> Tensor:
    rows, columns = (-size % SIDE for size in weight.shape)
    return F.pad(weight, (0, columns, 0, rows)) if rows or columns else weight.contiguous()


def _padded_bias(weights: Weights) -> Tensor | None:
    return None if weights.bias is None else F.pad(_copied(weights.bias), (0, -len(weights.bias) % SIDE))


def _panels(num_rows: int) -> int:
    return math.ceil(num_rows / SIDE)


def _padded(dim: int) -> int:
    return SIDE * math.ceil(dim / SIDE)


def _num_rows(hidden: Hidden, strips: Tensor) -> int:
    """Rows of panels, those that fill up the last one included."""
    return hidden.numel() // (strips.shape[1] * SIDE)


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
