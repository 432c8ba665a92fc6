"""Sequences in, embeddings out, on one device: tokenise, pack, encode, pool, hand back.

Needs torch, numpy, safetensors and transformers' tokenizers alone, so that it can be measured anywhere.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from models import checkpoints
from models.backends.choice import Choice, Precision, choose
from models.catalogue import Family, Model
from models.esm2 import Esm2
from models.failures import DeviceLost, OutOfMemory
from models.packing import Pack, pack, residue_rows
from models.planning import cost
from models.pooling import mean_pool
from models.t5 import T5
from models.tokens import UnknownResidue, residue_table
from models.transfer import Transfer

logger = logging.getLogger(__name__)

OutputDtype = Literal["float16", "float32"]

_ENCODERS: Mapping[Family, type[Esm2] | type[T5]] = {"esm2": Esm2, "t5": T5}
# Cost of a batch at most. On a CPU a layer's activations then fit its caches; a GPU needs more to be busy
BUDGETS: Mapping[str, int] = {"cpu": 4096, "cuda": 32_768}
_ENDS: Mapping[str, float] = {"float16": 65_520.0, "float32": math.inf}  # what is rounded to infinity
_OUTPUT_DTYPES: Mapping[str, torch.dtype] = {"float16": torch.float16, "float32": torch.float32}


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
        self.device = torch.device(device)
        self.transfer = Transfer(self.device)
        self._launching = threading.Lock()
        self.choice = choice or choose(self.device, model.family, precision)
        self.encoder: Encoder = _ENCODERS[model.family](config, weights, self.choice.backend, self.device)
        self.table = residue_table(folder, model, config.vocab_size)

    @property
    def budget(self) -> int:
        """Cost of a batch at most, unless the deployment says otherwise."""
        return BUDGETS.get(self.device.type, BUDGETS["cpu"])

    @property
    def num_callers(self) -> int:
        """How many threads should call `embed`: on CUDA one batch is prepared and handed back beside another."""
        return 2 if self.device.type == "cuda" else 1

    def cost(self, item: Item) -> int:
        """Cost of an item for planning, in tokens' worth of arithmetic."""
        return cost(len(item.sequence) + sum(self.model.num_specials), self.model.dim)

    def embed(self, items: Sequence[Item]) -> list[np.ndarray | EmbeddingError]:
        """One result an item, in order: (D,) if pooled, else (L, D), of the item's dtype, or why not.

        An error that is not of one item alone (a kernel's, say) is looked for by halving the batch.

        Raises:
            OutOfMemory: the batch is too large for the device.
            DeviceLost: after an error, the device does not even add two numbers.
        """
        try:
            return self._embed(items)
        except Exception as error:
            self._probe()
            if _is_out_of_memory(error):
                num_residues = sum(len(item.sequence) for item in items)
                raise OutOfMemory(
                    f"{num_residues} residues are more than the memory of {self.device} holds"
                ) from error
            if len(items) == 1:
                logger.exception("%s failed on a sequence of %d", self.model.name, len(items[0].sequence))
                reason = f"the model failed on this sequence ({type(error).__name__})"
                return [EmbeddingError(f"{reason}; the server's log has the details")]
            logger.warning("%s failed on %d sequences: %s", self.model.name, len(items), error)
        half = len(items) // 2
        return self.embed(items[:half]) + self.embed(items[half:])

    def _probe(self) -> None:
        try:
            torch.ones(1, device=self.device).add_(1).item()
        except Exception as error:
            if _is_out_of_memory(error):
                return
            raise DeviceLost(f"{self.device} is lost: {error}") from error

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


def _is_out_of_memory(error: Exception) -> bool:
    """Of the device (torch), of a kernel (MemoryError), or of torch's allocator on the host, which has no type."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


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
