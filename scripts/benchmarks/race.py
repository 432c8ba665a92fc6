"""Contenders in turn, round after round, on the same sequences."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from scripts.benchmarks.clock import timed
from scripts.benchmarks.contenders import Contender

WARM_UP_SEQUENCES = 2


@dataclass
class Race:
    """seconds and outputs: of every round, and of the last one, by contender. peaks: operations per second of the
    plain product, one a round. failures: why a contender is out."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    outputs: dict[str, list[np.ndarray]] = field(default_factory=dict)
    peaks: list[float] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def median_s(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def run(
        self,
        contenders: Mapping[str, Contender],
        sequences: Sequence[str],
        device: str,
        rounds: int,
        peak: Callable[[], float],
    ) -> None:
        """Times every contender in every round. One that fails is out, but for the engine, whose error is raised.

        On a CPU the shortest sequences come first, untimed. On CUDA all do: kernels are chosen by shape.
        """
        warm_up = sorted(sequences, key=len)[:WARM_UP_SEQUENCES] if device == "cpu" else sequences
        for name, contender in contenders.items():
            self._try(name, contender, warm_up, device)
        for _ in range(rounds):
            self.peaks.append(peak())
            for name, contender in contenders.items():
                if name not in self.failures and (seconds := self._try(name, contender, sequences, device)):
                    self.seconds.setdefault(name, []).append(seconds)

    def _try(self, name: str, contender: Contender, sequences: Sequence[str], device: str) -> float | None:
        """Seconds, or none where it failed."""
        try:
            self.outputs[name], seconds = timed(lambda: contender(sequences), device)
            return seconds
        except Exception as error:  # whatever a peer raises is of the peer
            if name.startswith("packed"):
                raise
            self.failures[name] = explain(error)
            self.seconds.pop(name, None)
            return None


def explain(error: Exception) -> str:
    """One line of an exception."""
    text = " ".join(str(error).split())
    what = "does not install here" if isinstance(error, ImportError) else type(error).__name__
    return f"{what}: {text[:200]}"
