"""An engine without arithmetic, to measure everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.catalogue import Model
from models.planning import cost

_NOISE_ROWS = 1000


@dataclass(frozen=True)
class NullItem:
    length: int
    pooled: bool
    dtype: str


@dataclass(frozen=True)
class NullChoice:
    precision: str = "none"


class NullEngine:
    """As models.engine.Engine from outside, as far as an actor sees it; embeddings are rows of seeded noise."""

    budget = 32_768
    choice = NullChoice()

    def __init__(self, model: Model) -> None:
        self._model = model
        noise = np.random.default_rng(0).standard_normal((_NOISE_ROWS, model.dim), np.float32)
        self._noise = {dtype: noise.astype(dtype) for dtype in ("float16", "float32")}

    def items(self, sequences: Sequence[str], pooled: bool, dtype: str) -> list[NullItem]:
        return [NullItem(len(sequence), pooled, dtype) for sequence in sequences]

    def cost(self, item: NullItem) -> int:
        return cost(item.length, self._model.dim)

    def embed(self, items: Sequence[NullItem]) -> list[np.ndarray]:
        """(D,) if pooled, else (L, D), of the item's dtype."""
        found = []
        for item in items:
            noise = self._noise[item.dtype]
            shape = (item.length, self._model.dim)
            found.append(noise[item.length % _NOISE_ROWS] if item.pooled else np.resize(noise, shape))
        return found
