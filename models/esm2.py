"""ESM-2 on packs.

Source of the arithmetic: fair-esm, esm/model/esm2.py and esm/modules.py; the same in transformers,
models/esm/modeling_esm.py. Shapes: T tokens in a pack, D width.
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
from models.positions import Rotary

# Embeddings are scaled as in training, where 15% of tokens were drawn and 80% of those masked: 1 - 0.15 * 0.8
TOKEN_DROPOUT_SCALE = 0.88


class Esm2:
    """The encoder: `encode(pack)` gives the hidden states after the last layer norm."""

    def __init__(
        self, config: EncoderConfig, weights: Mapping[str, Tensor], backend: Backend, device: torch.device
    ) -> None:
        self.config = config
        self.backend = backend

        def read(name: str) -> Weights:
            return Weights(weights[f"{name}.weight"], weights[f"{name}.bias"])

        def read_norm(name: str) -> Callable[[Tensor], Hidden]:
            return backend.norm(weights[f"{name}.weight"], weights[f"{name}.bias"], config.norm_eps)

        def read_layer(prefix: str) -> Block:
            parts = [read(f"{prefix}.attention.self.{part}") for part in ("query", "key", "value")]
            biases = [part.bias for part in parts if part.bias is not None]
            return Block(
                attention_norm=read_norm(f"{prefix}.attention.LayerNorm"),
                qkv=backend.qkv(Weights(torch.cat([part.weight for part in parts]), torch.cat(biases))),
                add_attended=backend.added(read(f"{prefix}.attention.output.dense")),
                feed_forward_norm=read_norm(f"{prefix}.LayerNorm"),
                up=backend.activated(read(f"{prefix}.intermediate.dense"), "gelu"),
                add_down=backend.added(read(f"{prefix}.output.dense")),
            )

        self.embedding = weights["embeddings.word_embeddings.weight"].to(device, torch.float32, copy=True)
        self.layers = [read_layer(f"encoder.layer.{i}") for i in range(config.num_layers)]
        last = [weights[f"encoder.emb_layer_norm_after.{part}"] for part in ("weight", "bias")]
        self.final_norm = [tensor.to(device, torch.float32, copy=True) for tensor in last]
        self.rotary = Rotary(config.head_dim, device)

    def encode(self, pack: Pack) -> Tensor:
        """(T, D) float32 hidden states of the last layer, special tokens included.

        The sums between blocks stay in float32; products run in the backend's precision. The reference scales
        queries before it rotates them; a rotation is linear, so scaling scores is the same.
        """
        c = self.config
        attend = self.backend.attention(pack, (c.num_heads, c.head_dim), rotary=self.rotary)
        x = self.embedding[pack.tokens] * TOKEN_DROPOUT_SCALE
        for layer in self.layers:
            layer.add_to(x, attend, c.head_dim**-0.5)
        return F.layer_norm(x, (c.dim,), self.final_norm[0], self.final_norm[1], c.norm_eps)
