"""ESM-2 on packs.

Source of the arithmetic: fair-esm, esm/model/esm2.py and esm/modules.py; the same in transformers,
models/esm/modeling_esm.py. Shapes: T tokens in a pack, D width, H heads, K head width.
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

# Embeddings are scaled as in training, where 15% of tokens were drawn and 80% of those masked: 1 - 0.15 * 0.8
TOKEN_DROPOUT_SCALE = 0.88
ROTARY_BASE = 10_000.0
ROTARY_STEP = 1024  # positions by which the table of rotations grows


@dataclass(frozen=True)
class _Layer:
    """Weights of one block; norms stay in float32, query, key and value are one product."""

    attention_norm: tuple[Tensor, Tensor]
    qkv: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]
    feed_forward_norm: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]


class Esm2:
    """The encoder: `encode(pack)` gives the hidden states after the last layer norm."""

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

        def read(name: str, to: torch.dtype = dtype) -> tuple[Tensor, Tensor]:
            return weights[f"{name}.weight"].to(device, to), weights[f"{name}.bias"].to(device, to)

        def read_layer(prefix: str) -> _Layer:
            parts = [read(f"{prefix}.attention.self.{part}") for part in ("query", "key", "value")]
            return _Layer(
                attention_norm=read(f"{prefix}.attention.LayerNorm", torch.float32),
                qkv=(torch.cat([w for w, _ in parts]), torch.cat([b for _, b in parts])),
                out=read(f"{prefix}.attention.output.dense"),
                feed_forward_norm=read(f"{prefix}.LayerNorm", torch.float32),
                up=read(f"{prefix}.intermediate.dense"),
                down=read(f"{prefix}.output.dense"),
            )

        self.embedding = weights["embeddings.word_embeddings.weight"].to(device, torch.float32)
        self.layers = [read_layer(f"encoder.layer.{i}") for i in range(config.num_layers)]
        self.final_norm = read("encoder.emb_layer_norm_after", torch.float32)
        steps = torch.arange(0, config.head_dim, 2, device=device).float() / config.head_dim
        self.inverse_frequencies = 1.0 / ROTARY_BASE**steps
        self.rotary: tuple[Tensor, Tensor] | None = None

    def encode(self, pack: Pack) -> Tensor:
        """(T, D) float32 hidden states of the last layer, special tokens included.

        The sums between blocks stay in float32; products run in the encoder's precision.
        """
        cos, sin = (table[pack.positions].unsqueeze(1) for table in self._rotary(pack.max_length))
        x = self.embedding[pack.tokens] * TOKEN_DROPOUT_SCALE
        for layer in self.layers:
            x += self._attend(layer, self._norm(x, layer.attention_norm), cos, sin, pack)
            hidden = F.gelu(F.linear(self._norm(x, layer.feed_forward_norm), *layer.up))
            x += F.linear(hidden, *layer.down)
        return F.layer_norm(x, (self.config.dim,), *self.final_norm, self.config.norm_eps)

    def _norm(self, x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, (self.config.dim,), *weights, self.config.norm_eps).to(self.dtype)

    def _attend(self, layer: _Layer, h: Tensor, cos: Tensor, sin: Tensor, pack: Pack) -> Tensor:
        """Self-attention of one block: (T, D) -> (T, D).

        The reference scales queries before it rotates them; a rotation is linear, so scaling scores is the same.
        """
        c = self.config
        query, key, value = F.linear(h, *layer.qkv).view(-1, 3, c.num_heads, c.head_dim).unbind(1)
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        attended = self.attention(query, key, value, pack, None, c.head_dim**-0.5)
        return F.linear(attended.reshape(-1, c.dim), *layer.out)

    def _rotary(self, longest: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every position's rotation, each (positions, K / 2); grown as sequences get longer."""
        if self.rotary is None or len(self.rotary[0]) < longest:
            num_positions = ROTARY_STEP * math.ceil(longest / ROTARY_STEP)
            positions = torch.arange(num_positions, device=self.inverse_frequencies.device).float()
            angles = torch.outer(positions, self.inverse_frequencies)
            self.rotary = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        return self.rotary


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (T, H, K) by angles of (T, 1, K / 2). Source: fair-esm esm/rotary_embedding.py."""
    left, right = x.chunk(2, dim=-1)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    new_left, new_right = out.chunk(2, dim=-1)
    torch.mul(left, cos, out=new_left).addcmul_(right, sin, value=-1)
    torch.mul(right, cos, out=new_right).addcmul_(left, sin)
    return out
