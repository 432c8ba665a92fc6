"""An engine whose device fails on command. How it fails further is the engine's own doing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from models.backends.choice import Choice
from models.catalogue import Model
from models.engine import Engine, Item
from models.failures import DeviceLost
from models.guard import EmbeddingError
from tests.chaos.faults import POISON, Faults

MAX_HOLD_S = 60.0


class FaultyEngine(Engine):
    """The `number`-th of several devices, all of which are the CPU."""

    def __init__(self, folder: Path, model: Model, choice: Choice, faults: Faults, number: int) -> None:
        super().__init__(folder, model, "cpu", choice=choice)
        self._faults = faults
        self._number = number
        self._is_lost = False

    def _embed(self, items: Sequence[Item]) -> list[np.ndarray | EmbeddingError]:
        deadline = time.monotonic() + MAX_HOLD_S
        while self._faults.hold.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        loss = self._faults.loss(self._number)
        if loss.exists():
            loss.unlink()
            self._is_lost = True
        if self._is_lost:
            raise RuntimeError("an illegal memory access was encountered")
        if self._faults.memory.exists() and len(items) > int(self._faults.memory.read_text()):
            raise torch.OutOfMemoryError(f"{len(items)} sequences do not fit")
        if any(POISON in item.sequence for item in items):
            raise RuntimeError("the kernel failed")
        return super()._embed(items)

    def _probe(self) -> None:
        if self._is_lost:
            raise DeviceLost(f"device {self._number} does not add two numbers")
        super()._probe()
