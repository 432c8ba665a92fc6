"""How alike vectors are, in float64."""

from __future__ import annotations

import numpy as np


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Of two vectors."""
    return float(cosines(one[None], other[None])[0])


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(L,) of the rows of two (L, D) arrays."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    found: np.ndarray = np.sum(a * b, -1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return found
