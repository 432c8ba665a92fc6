"""The T5 encoder on packs, as ProtT5 uses it.

Source of the arithmetic: transformers, models/t5/modeling_t5.py. Shapes: T tokens in a pack, D width,
H heads, K head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import Attention
from models.configs import EncoderConfig
from models.packing import Pack

MATRIX_STEP = 256  # tokens by which the bias grows
MAX_MATRIX_NUMBERS = 64 * 1024 * 1024  # of the matrix that is kept: 1,448 tokens at ProtT5's 32 heads


@dataclass(frozen=True)
class _Block:
    """Weights of one block; T5 has no biases and does not scale its queries."""

    attention_norm: Tensor
    qkv: Tensor
    out: Tensor
    feed_forward_norm: Tensor
    up: Tensor
    gate: Tensor | None
    down: Tensor


class T5:
    """The encoder: `encode(pack)` gives the hidden states after the last norm."""

    def __init__(
        self,
        config: EncoderConfig,
        weights: dict[str, Tensor],
        attention: Attention,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.config = config
        self.attention = attention
        self.dtype = dtype

        def read(name: str, to: torch.dtype = dtype) -> Tensor:
            return weights[f"{name}.weight"].to(device, to)

        def read_block(prefix: str) -> _Block:
            attention, feed_forward = f"{prefix}.0.SelfAttention", f"{prefix}.1.DenseReluDense"
            return _Block(
                attention_norm=read(f"{prefix}.0.layer_norm", torch.float32),
                qkv=torch.cat([read(f"{attention}.{part}") for part in ("q", "k", "v")]),
                out=read(f"{attention}.o"),
                feed_forward_norm=read(f"{prefix}.1.layer_norm", torch.float32),
                up=read(f"{feed_forward}.wi_1" if config.is_gated else f"{feed_forward}.wi"),
                gate=read(f"{feed_forward}.wi_0") if config.is_gated else None,
                down=read(f"{feed_forward}.wo"),
            )

        self.embedding = read("shared", torch.float32)
        self.blocks = [read_block(f"encoder.block.{i}.layer") for i in range(config.num_layers)]
        self.final_norm = read("encoder.final_layer_norm", torch.float32)
        buckets = read("encoder.block.0.layer.0.SelfAttention.relative_attention_bias", torch.float32)
        self.bias = _PositionBias(buckets, config, dtype)

    def encode(self, pack: Pack) -> Tensor:
        """(T, D) float32 hidden states of the last block, the end token included.

        The sums between blocks stay in float32; products run in the encoder's precision.
        """
        self.bias.reach(pack.max_length)
        x = self.embedding[pack.tokens]
        for block in self.blocks:
            x += self._attend(block, self._norm(x, block.attention_norm), pack)
            x += self._feed_forward(block, self._norm(x, block.feed_forward_norm))
        return F.rms_norm(x, (self.config.dim,), self.final_norm, self.config.norm_eps)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (self.config.dim,), weight, self.config.norm_eps).to(self.dtype)

    def _attend(self, block: _Block, h: Tensor, pack: Pack) -> Tensor:
        """Self-attention of one block: (T, D) -> (T, D)."""
        c = self.config
        query, key, value = F.linear(h, block.qkv).view(-1, 3, c.num_heads, c.head_dim).unbind(1)
        attended = self.attention(query, key, value, pack, self.bias.block, 1.0)
        return F.linear(attended.reshape(-1, c.num_heads * c.head_dim), block.out)

    def _feed_forward(self, block: _Block, h: Tensor) -> Tensor:
        up = F.linear(h, block.up)
        if block.gate is None:
            return F.linear(F.relu(up), block.down)
        return F.linear(F.gelu(F.linear(h, block.gate), approximate="tanh") * up, block.down)


class _PositionBias:
    """The relative position bias: one number per head and distance, and the matrix that they make.

    by_distance: (H, 2 * longest - 1); entry d + longest - 1 is the bias of a key d tokens behind its query.
    matrix: (H, N, N) for sequences of up to N tokens. It depends on the distance alone, so the matrix of a shorter
    sequence is its upper left corner. For longer ones a block is made when it is attended.
    """

    def __init__(self, buckets: Tensor, config: EncoderConfig, dtype: torch.dtype) -> None:
        self._buckets = buckets
        self._config = config
        self._dtype = dtype
        self.longest = 0
        self.by_distance = torch.empty(config.num_heads, 0, dtype=dtype)
        self.matrix = torch.empty(config.num_heads, 0, 0, dtype=dtype)

    def reach(self, longest: int) -> None:
        """Makes ready for sequences of up to `longest` tokens."""
        if longest <= self.longest:
            return
        self.longest = MATRIX_STEP * math.ceil(longest / MATRIX_STEP)
        distances = torch.arange(1 - self.longest, self.longest, device=self._buckets.device)
        index = relative_position_bucket(distances, self._config.num_buckets, self._config.max_distance)
        self.by_distance = self._buckets[index].T.to(self._dtype).contiguous()
        side = min(self.longest, math.isqrt(MAX_MATRIX_NUMBERS // self._config.num_heads))
        if side > self.matrix.shape[1]:
            self.matrix = self._make(0, side, side)

    def block(self, start: int, end: int, length: int) -> Tensor:
        """(H, end - start, length): the bias of queries start..end over the keys of their sequence."""
        if length <= self.matrix.shape[1]:
            return self.matrix[:, start:end, :length]
        return self._make(start, end, length)

    def _make(self, start: int, end: int, length: int) -> Tensor:
        # Row q is the run of `length` distances from -q on: windows of the flat table, last first
        runs = self.by_distance[:, self.longest - end : self.longest - 1 - start + length]
        return runs.unfold(1, length, 1).flip(1)


def relative_position_bucket(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket of a signed distance (key minus query), for an encoder: half the buckets for each sign.

    Source: transformers T5Attention._relative_position_bucket with bidirectional=True.
    """
    half = num_buckets // 2
    exact = half // 2
    magnitude = distance.abs()
    logarithmic = exact + (
        torch.log(magnitude.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
    ).long().clamp(max=half - 1 - exact)
    return torch.where(magnitude < exact, magnitude, logarithmic) + half * (distance > 0)
