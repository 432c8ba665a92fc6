"""Sequences in, embeddings out, on one device: tokenise, pack, encode, pool, hand back.

Needs torch, numpy, safetensors and transformers' tokenizers alone, so that it can be measured anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from models import checkpoints
from models.attention import choose_attention
from models.catalogue import Family, Model
from models.esm2 import Esm2
from models.packing import Pack, pack, residue_rows
from models.planning import cost
from models.pooling import mean_pool
from models.t5 import T5
from models.tokens import UnknownResidue, residue_table

Precision = Literal["auto", "fp32", "bf16"]
OutputDtype = Literal["float16", "float32"]

_ENCODERS: Mapping[Family, type[Esm2] | type[T5]] = {"esm2": Esm2, "t5": T5}
_TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


class EmbeddingError(Exception):
    """One sequence could not be embedded; the others of its batch are not touched."""


@dataclass(frozen=True)
class Item:
    """What is asked of the engine for one cleaned sequence."""

    sequence: str
    pooled: bool
    dtype: OutputDtype


class Encoder(Protocol):
    """Hidden states of a pack: (T, D) float32, special tokens included."""

    def encode(self, pack: Pack) -> Tensor: ...


class Engine:
    """One model on one device.

    Args:
        folder: a Hugging Face folder of the model's weights.
        model: its catalogue row.
        device: "cpu", "cuda:0", ...
        precision: of the products; "auto" asks the hardware.
    Raises:
        CheckpointError: the folder does not hold this model.
    """

    def __init__(self, folder: Path, model: Model, device: str = "cpu", precision: Precision = "auto") -> None:
        config, weights = checkpoints.load(folder, model)
        self.model = model
        self.device = torch.device(device)
        self.precision, self.precision_reason = choose_precision(self.device, precision)
        dtype = _TORCH_DTYPES[self.precision]
        attention, self.attention_reason = choose_attention(self.device, dtype, biased=model.family == "t5")
        self.encoder: Encoder = _ENCODERS[model.family](config, weights, attention, self.device, dtype)
        self.table = residue_table(folder, model, config.vocab_size)

    def cost(self, item: Item) -> int:
        """Cost of an item for planning, in tokens' worth of arithmetic."""
        return cost(len(item.sequence) + sum(self.model.num_specials), self.model.dim)

    def embed(self, items: Sequence[Item]) -> list[np.ndarray | EmbeddingError]:
        """One result an item, in order: (D,) if pooled, else (L, D), of the item's dtype, or why not.

        An error that is not of one item alone (a kernel's, say) is looked for by halving the batch.
        """
        try:
            return self._embed(items)
        except Exception as error:
            if len(items) == 1:
                return [EmbeddingError(f"{type(error).__name__}: {error}")]
        half = len(items) // 2
        return self.embed(items[:half]) + self.embed(items[half:])

    @torch.inference_mode()
    def _embed(self, items: Sequence[Item]) -> list[np.ndarray | EmbeddingError]:
        results: list[np.ndarray | EmbeddingError | None] = [None] * len(items)
        tokens: list[np.ndarray] = []
        kept: list[int] = []
        for index, item in enumerate(items):
            try:
                tokens.append(self.table.encode(item.sequence))
                kept.append(index)
            except UnknownResidue as error:
                results[index] = EmbeddingError(str(error))
        if kept:
            for index, result in zip(kept, self._run([items[i] for i in kept], tokens), strict=True):
                results[index] = result
        return [result for result in results if result is not None]

    def _run(self, items: Sequence[Item], tokens: Sequence[np.ndarray]) -> list[np.ndarray | EmbeddingError]:
        """One forward pass over tokenised items."""
        batch = pack(tokens, self.device)
        residues = self.encoder.encode(batch)[residue_rows(batch, self.model.num_specials)]
        lengths = [length - sum(self.model.num_specials) for length in batch.lengths]
        pooled = mean_pool(residues, torch.tensor(lengths, device=self.device))
        ends = np.cumsum(lengths).tolist()
        return [
            _hand_back(item, pooled[i], residues[ends[i] - lengths[i] : ends[i]]) for i, item in enumerate(items)
        ]


def _hand_back(item: Item, pooled: Tensor, residues: Tensor) -> np.ndarray | EmbeddingError:
    """An item's result in host memory. A mean is finite only if every residue is, so it is what is checked."""
    wanted = pooled if item.pooled else residues
    cast = wanted.to(_TORCH_DTYPES[item.dtype])
    if not torch.isfinite(pooled).all():
        return EmbeddingError("the model's output is not finite for this sequence")
    if not torch.isfinite(cast).all():
        return EmbeddingError("the output does not fit float16; ask for float32")
    array: np.ndarray = cast.cpu().numpy()
    return array


def choose_precision(device: torch.device, wanted: Precision) -> tuple[str, str]:
    """Precision of the products, with the reason in words."""
    if wanted != "auto":
        return wanted, "asked for by PRECISION"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return "bf16", "the GPU has bfloat16 units (compute capability 8.0 or above)"
        return "fp32", "the GPU has no bfloat16 units"
    if device.type == "cpu" and _cpu_multiplies_bf16():
        return "bf16", "the processor multiplies bfloat16 (AVX512-BF16 or AMX)"
    return "fp32", f"no bfloat16 units on this {device.type}"


def _cpu_multiplies_bf16() -> bool:
    """Whether 16-bit products are faster than 32-bit ones here, by the processor's own flags."""
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(flag)) for flag in ("avx512_bf16", "amx_bf16"))
