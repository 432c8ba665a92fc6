"""Sequences in, embeddings out, on one device: tokenise, pack, encode, pool, hand back.

Needs torch, numpy, safetensors and transformers' tokenizers alone, so that it can be measured anywhere.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from models import checkpoints
from models.backends.choice import Choice, Precision, choose
from models.catalogue import Family, Model
from models.esm2 import Esm2
from models.guard import EmbeddingError, Guarded
from models.packing import Pack, pack, residue_rows
from models.planning import cost
from models.pooling import mean_pool
from models.t5 import T5
from models.tokens import UnknownResidue, residue_table
from models.transfer import Transfer

OutputDtype = Literal["float16", "float32"]

_ENCODERS: Mapping[Family, type[Esm2] | type[T5]] = {"esm2": Esm2, "t5": T5}
# Cost of a batch at most. On a CPU a layer's activations then fit its caches; a GPU needs more to be busy
BUDGETS: Mapping[str, int] = {"cpu": 4096, "cuda": 32_768}
_ENDS: Mapping[str, float] = {"float16": 65_520.0, "float32": math.inf}  # what is rounded to infinity
_OUTPUT_DTYPES: Mapping[str, torch.dtype] = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Item:
    """What is asked of the engine for one cleaned sequence."""

    sequence: str
    pooled: bool
    dtype: OutputDtype


class Encoder(Protocol):
    """Hidden states of a pack: (T, D) float32, special tokens included."""

    def encode(self, pack: Pack) -> Tensor: ...


class Engine(Guarded[Item]):
    """One model on one device.

    Args:
        folder: a Hugging Face folder of the model's weights.
        model: its catalogue row.
        device: "cpu", "cuda:0", ...
        precision: of the products; "auto" asks the hardware.
        choice: instead of `precision`, the backend itself.
    Raises:
        CheckpointError: the folder does not hold this model.
    """

    def __init__(
        self,
        folder: Path,
        model: Model,
        device: str = "cpu",
        precision: Precision = "auto",
        choice: Choice | None = None,
    ) -> None:
        config, weights = checkpoints.load(folder, model)
        self.model = model
        self.name = model.name
        self.dim = model.dim
        self.num_parameters = sum(weight.numel() for weight in weights.values())
        self.device = torch.device(device)
        self.transfer = Transfer(self.device)
        self._num_threads = torch.get_num_threads()
        self.choice = choice or choose(self.device, model.family, precision)
        self._launching = contextlib.nullcontext() if self.divides else threading.Lock()
        self.encoder: Encoder = _ENCODERS[model.family](config, weights, self.choice.backend, self.device)
        self.table = residue_table(folder, model, config.vocab_size)

    @property
    def budget(self) -> int:
        """Cost of a batch at most, unless the deployment says otherwise."""
        return BUDGETS.get(self.device.type, BUDGETS["cpu"])

    @property
    def num_callers(self) -> int:
        """How many threads should call `embed`, or `embed_share` where the device divides.

        On CUDA one batch is prepared and handed back beside another.
        """
        return 2 if self.device.type == "cuda" or self.divides else 1

    @property
    def divides(self) -> bool:
        """Whether half of the cores may compute a batch of their own beside the other half."""
        return self.choice.backend.divides and self._num_threads > 1

    def embed(self, items: Sequence[Item]) -> list[np.ndarray | EmbeddingError]:
        if self.divides:
            _use_threads(self._num_threads)
        return super().embed(items)

    def embed_share(self, items: Sequence[Item]) -> list[np.ndarray | EmbeddingError]:
        """The same on half of the cores, for two threads that call nothing else.

        They never wait for each other, as the threads of one team do at the end of every operation.
        """
        _use_threads(self._num_threads // self.num_callers)
        return super().embed(items)

    def cost(self, item: Item) -> int:
        """Cost of an item for planning, in tokens' worth of arithmetic."""
        return cost(self.num_tokens(item), self.model.dim)

    def items(self, sequences: Sequence[str], pooled: bool, dtype: OutputDtype) -> list[Item | EmbeddingError]:
        """What a call asks for, one item a sequence."""
        return [Item(sequence, pooled, dtype) for sequence in sequences]

    def lingers(self, item: Item) -> bool:
        """Whether a result may be kept for a moment: a pooled one is a few kilobytes."""
        return item.pooled

    def num_tokens(self, item: Item) -> int:
        """Tokens that the model reads, special ones included."""
        return len(item.sequence) + sum(self.model.num_specials)

    def facts(self) -> dict[str, Any]:
        """What the catalogue does not say."""
        return {"num_parameters": self.num_parameters}

    def _measure(self, items: Sequence[Item]) -> str:
        return f"{sum(len(item.sequence) for item in items)} residues"

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
        """One forward pass over tokenised items. Two callers' kernels do not mix; all else goes side by side."""
        guard = torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()
        kinds = sorted({(item.pooled, item.dtype) for item in items})
        with guard:
            batch = pack(tokens, self.transfer)
            lengths = [length - sum(self.model.num_specials) for length in batch.lengths]
            num_residues = self.transfer.to_device(torch.tensor(lengths))
            rows = residue_rows(batch, self.model.num_specials, self.transfer)
            with self._launching:
                residues = self.encoder.encode(batch)[rows]
                pooled = mean_pool(residues, num_residues)
                is_finite = torch.isfinite(pooled).all(1)  # a mean is finite only if every residue is
                wanted = [pooled if is_pooled else residues for is_pooled, _ in kinds]
                # Rows that fit the dtype, found where the rows are: the host would take as long as a GPU's batch
                fits = [t.abs().amax(1) < _ENDS[dtype] for t, (_, dtype) in zip(wanted, kinds, strict=True)]
                cast = [t.to(_OUTPUT_DTYPES[dtype]) for t, (_, dtype) in zip(wanted, kinds, strict=True)]
                copied = self.transfer.to_host([is_finite, *fits, *cast])
            finite, *arrays = (copy.numpy() for copy in copied())
        rows_of = zip(arrays[: len(kinds)], arrays[len(kinds) :], strict=True)
        return _hand_back(items, lengths, finite, dict(zip(kinds, rows_of, strict=True)))


def _use_threads(num: int) -> None:
    """OpenMP's, of whoever calls."""
    if torch.get_num_threads() != num:
        torch.set_num_threads(num)


def _hand_back(
    items: Sequence[Item],
    lengths: Sequence[int],
    is_finite: np.ndarray,
    found: Mapping[tuple[bool, OutputDtype], tuple[np.ndarray, np.ndarray]],
) -> list[np.ndarray | EmbeddingError]:
    """Each item's part of what was found for its kind: whether a row fits the dtype, and the rows."""
    results: list[np.ndarray | EmbeddingError] = []
    start = 0
    for index, (item, length) in enumerate(zip(items, lengths, strict=True)):
        fits, rows = found[item.pooled, item.dtype]
        part: int | slice = index if item.pooled else slice(start, start + length)
        start += length
        if not is_finite[index]:
            results.append(EmbeddingError("the model's output is not finite for this sequence"))
        elif not fits[part].all():
            results.append(EmbeddingError("the output does not fit float16; ask for float32"))
        else:
            results.append(rows[part])
    return results
