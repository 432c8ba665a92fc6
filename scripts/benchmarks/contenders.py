"""Ways to the same embeddings: what all of them are given, and what they give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.backends.choice import Precision
from models.catalogue import Model

Contender = Callable[[Sequence[str]], list[np.ndarray]]  # one mean vector a sequence, in order


@dataclass(frozen=True)
class Task:
    """Weights and the device they run on; how the engine is to run there.

    precision: of the engine. budget_tokens: cost of one of its batches at most; None: what suits the device.
    """

    folder: Path
    model: Model
    device: str
    precision: Precision = "auto"
    budget_tokens: int | None = None
