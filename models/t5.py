"""The T5 encoder on packs, as ProtT5 uses it.

Source of the arithmetic: transformers, models/t5/modeling_t5.py. Shapes: T tokens in a pack, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from models.backends.base import Backend, Hidden, Weights
from models.block import Block
from models.configs import EncoderConfig
from models.packing import Pack
from models.positions import Buckets, PositionBias


class T5:
    """The encoder: `encode(pack)` gives the hidden states after the last norm."""

    def __init__(
        self, config: EncoderConfig, weights: Mapping[str, Tensor], backend: Backend, device: torch.device
    ) -> None:
        self.config = config
        self.backend = backend

        def read(name: str) -> Weights:
            return Weights(weights[f"{name}.weight"])

        def read_norm(name: str) -> Callable[[Tensor], Hidden]:
            return backend.norm(weights[f"{name}.weight"], None, config.norm_eps)

        def read_up(name: str) -> Callable[[Hidden], Hidden]:
            if config.is_gated:
                return backend.gated(read(f"{name}.wi_0"), read(f"{name}.wi_1"))
            return backend.activated(read(f"{name}.wi"), "relu")

        def read_block(prefix: str) -> Block:
            attention, feed_forward = f"{prefix}.0.SelfAttention", f"{prefix}.1.DenseReluDense"
            parts = [weights[f"{attention}.{part}.weight"] for part in ("q", "k", "v")]
            return Block(
                attention_norm=read_norm(f"{prefix}.0.layer_norm"),
                qkv=backend.qkv(Weights(torch.cat(parts))),
                add_attended=backend.added(read(f"{attention}.o")),
                feed_forward_norm=read_norm(f"{prefix}.1.layer_norm"),
                up=read_up(feed_forward),
                add_down=backend.added(read(f"{feed_forward}.wo")),
            )

        def read_float(name: str) -> Tensor:
            return weights[f"{name}.weight"].to(device, torch.float32, copy=True)  # not the mapped file's

        self.embedding = read_float("shared")
        self.blocks = [read_block(f"encoder.block.{i}.layer") for i in range(config.num_layers)]
        self.final_norm = read_float("encoder.final_layer_norm")
        buckets = read_float("encoder.block.0.layer.0.SelfAttention.relative_attention_bias")
        self.bias = PositionBias(Buckets(buckets, config.max_distance), backend.dtype)

    def encode(self, pack: Pack) -> Tensor:
        """(T, D) float32 hidden states of the last block, the end token included.

        The sums between blocks stay in float32; products run in the backend's precision.
        """
        c = self.config
        attend = self.backend.attention(pack, (c.num_heads, c.head_dim), bias=self.bias)
        x = self.embedding[pack.tokens]
        for block in self.blocks:
            block.add_to(x, attend, 1.0)  # T5 does not scale its queries
        return F.rms_norm(x, (c.dim,), self.final_norm, c.norm_eps)
