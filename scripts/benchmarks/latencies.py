"""Latencies in a few figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Latencies:
    """Of requests of one kind, in milliseconds."""

    num: int
    p50_ms: float
    p99_ms: float

    def rounded(self) -> dict[str, float]:
        """For the JSON line."""
        return {"num": self.num, "p50_ms": round(self.p50_ms, 2), "p99_ms": round(self.p99_ms, 2)}


def summarise(seconds: Sequence[float]) -> Latencies:
    """Percentiles of seconds, of which there is one at least."""
    return Latencies(len(seconds), percentile(seconds, 50) * 1e3, percentile(seconds, 99) * 1e3)


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that `percent` of all values do not exceed: always one that was measured (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
