"""What becomes of a batch that fails on a device: whose fault it is, and who is told."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
import torch

from models.failures import DeviceLost, OutOfMemory

logger = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")


class EmbeddingError(Exception):
    """One sequence could not be embedded; the others of its batch are not touched."""


class Guarded(ABC, Generic[ItemT]):
    """An engine on one device. Its `_embed` fails as it likes; `embed` tells of it as models/batcher.py wants."""

    name: str
    device: torch.device

    @abstractmethod
    def _embed(self, items: Sequence[ItemT]) -> list[np.ndarray | EmbeddingError]:
        """One result an item, in order."""

    @abstractmethod
    def _measure(self, items: Sequence[ItemT]) -> str:
        """How much that is, in words: "812 residues"."""

    def embed(self, items: Sequence[ItemT]) -> list[np.ndarray | EmbeddingError]:
        """One result an item, in order, or why there is none.

        An error that is not of one item alone (a kernel's, say) is looked for by halving the batch.

        Raises:
            OutOfMemory: the batch is too large for the device.
            DeviceLost: after an error, the device does not even add two numbers.
        """
        try:
            return self._embed(items)
        except Exception as error:
            self._probe()
            is_too_large, why = _is_out_of_memory(error), str(error)
            if len(items) == 1 and not is_too_large:
                logger.exception("%s failed on a sequence of %s", self.name, self._measure(items))
                reason = f"the model failed on this sequence ({type(error).__name__})"
                return [EmbeddingError(f"{reason}; the server's log has the details")]
        if is_too_large:  # raised behind the error, whose frames hold all that the failed pass has in memory
            raise OutOfMemory(f"{self._measure(items)} are more than the memory of {self.device} holds")
        logger.warning("%s failed on %d sequences: %s", self.name, len(items), why)
        half = len(items) // 2
        return self.embed(items[:half]) + self.embed(items[half:])

    def _probe(self) -> None:
        try:
            torch.ones(1, device=self.device).add_(1).item()
        except Exception as error:
            if _is_out_of_memory(error):
                return
            raise DeviceLost(f"{self.device} is lost: {error}") from error


def _is_out_of_memory(error: Exception) -> bool:
    """Of the device (torch), of a kernel (MemoryError), or of torch's allocator on the host, which has no type."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
