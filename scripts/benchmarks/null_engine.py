"""The service with an engine that makes arrays without arithmetic: everything but the model, as it is.

    bentoml serve scripts.benchmarks.null_engine:ProteinEmbeddingService

Importing `ProteinEmbeddingService` from here builds the service with it; importing the rest does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.catalogue import Model
from models.planning import cost

if TYPE_CHECKING:
    from models.engine import Item, OutputDtype
    from models.runner import RunnerOptions

SERVICE = "scripts.benchmarks.null_engine:ProteinEmbeddingService"
BUDGET = 4096
NOISE_ROWS = 1000


@dataclass(frozen=True)
class NullChoice:
    """What a runner says of its arithmetic."""

    precision: str = "fp32"
    precision_reason: str = "there is no arithmetic"
    backend_reason: str = "none: embeddings are noise"


@dataclass
class NullEngine:
    """As models.engine.Engine from outside. Embeddings are pieces of one block of seeded noise."""

    model: Model
    budget: int = BUDGET
    num_callers: int = 1
    divides: bool = False
    choice: NullChoice = field(default_factory=NullChoice)

    def __post_init__(self) -> None:
        import torch

        self.device = torch.device("cpu")
        rng = np.random.default_rng(0)
        self._noise = rng.standard_normal((NOISE_ROWS, self.model.dim), np.float32)

    @property
    def dim(self) -> int:
        return self.model.dim

    def items(self, sequences: Sequence[str], pooled: bool, dtype: OutputDtype) -> list[Item]:
        from models.engine import Item

        return [Item(sequence, pooled, dtype) for sequence in sequences]

    def lingers(self, item: Item) -> bool:
        return item.pooled

    def num_tokens(self, item: Item) -> int:
        return len(item.sequence)

    def facts(self) -> dict[str, Any]:
        return {}

    def cost(self, item: Item) -> int:
        return cost(len(item.sequence), self.model.dim)

    def embed(self, items: Sequence[Item]) -> list[np.ndarray]:
        """(D,) if pooled, else (L, D), of the item's dtype, in memory of its own."""
        rows = (1 if item.pooled else len(item.sequence) for item in items)
        arrays = [
            np.resize(self._noise.astype(item.dtype), (num, self.model.dim))
            for item, num in zip(items, rows, strict=True)
        ]
        return [array[0] if item.pooled else array for item, array in zip(items, arrays, strict=True)]


def load_null_engines(folder: Path, model: Model, options: RunnerOptions) -> list[NullEngine]:  # noqa: ARG001
    """In place of models.replicas.load_engines; the weights are not read."""
    return [NullEngine(model)]


def __getattr__(name: str) -> Any:
    if name != "ProteinEmbeddingService":
        raise AttributeError(name)
    import models.replicas

    models.replicas.load_engines = load_null_engines  # type: ignore[assignment]
    from service import ProteinEmbeddingService

    return ProteinEmbeddingService
