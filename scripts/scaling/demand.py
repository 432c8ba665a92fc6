"""What is asked of the service: when requests come, and what their sequences cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from scripts.benchmarks.workload import sample_lengths

DAY_S = 86_400.0
MAX_LENGTH = 5000  # residues; the service's default limit


@dataclass(frozen=True)
class Trace:
    """arrivals: (N,) seconds, in order. starts: (N + 1,) places in `costs`; the sequences of request i stand
    between two of them. costs: tokens' worth of arithmetic of each sequence, at least 1.
    """

    arrivals: np.ndarray
    starts: np.ndarray
    costs: np.ndarray

    def __len__(self) -> int:
        return len(self.arrivals)


@dataclass(frozen=True)
class Demand:
    """A Poisson process whose rate follows the day, with bursts.

    requests_per_s: mean over a day, without bursts. swing: 0 for an even day; at 1 the night has none, the peak at
    noon twice the mean. bursts_per_day: begin at any time, and last for burst_s with burst_factor times the rate.
    sequences_per_request: mean of a geometric distribution, at least 1.
    """

    requests_per_s: float
    swing: float = 0.0
    bursts_per_day: float = 0.0
    burst_s: float = 300.0
    burst_factor: float = 3.0
    sequences_per_request: float = 1.0

    def trace(self, horizon_s: float, dim: int, rng: np.random.Generator) -> Trace:
        """Requests of so many seconds, for a model of this width. Lengths are Swiss-Prot's."""
        arrivals = self._arrivals(horizon_s, rng)
        nums = rng.geometric(1 / self.sequences_per_request, len(arrivals))
        lengths = sample_lengths(int(nums.sum()), MAX_LENGTH, rng)
        return Trace(arrivals, np.concatenate([[0], np.cumsum(nums)]), costs(lengths, dim))

    def _arrivals(self, horizon_s: float, rng: np.random.Generator) -> np.ndarray:
        """Thinning: candidates at the highest rate, each kept with its share of it.

        Source: Lewis and Shedler 1979, Simulation of nonhomogeneous Poisson processes by thinning.
        """
        bursts = rng.uniform(0, horizon_s, rng.poisson(self.bursts_per_day * horizon_s / DAY_S))
        most = self.requests_per_s * (1 + self.swing) * (self.burst_factor if len(bursts) else 1.0)
        times = np.sort(rng.uniform(0, horizon_s, rng.poisson(most * horizon_s)))
        rates = self.requests_per_s * (1 - self.swing * np.cos(2 * math.pi * times / DAY_S))
        is_burst = np.zeros(len(times), bool)
        for start in bursts:
            is_burst |= (times >= start) & (times < start + self.burst_s)
        rates *= np.where(is_burst, self.burst_factor, 1.0)
        arrivals: np.ndarray = times[rng.random(len(times)) * most < rates]
        return arrivals


def costs(lengths: np.ndarray, dim: int) -> np.ndarray:
    """`models.planning.cost` of many lengths."""
    found: np.ndarray = lengths + lengths * lengths // (6 * dim)
    return found


def cost_per_residue(dim: int, num: int = 100_000) -> float:
    """Mean over Swiss-Prot's residues. A measured rate in residues a second times this is one in cost a second."""
    lengths = sample_lengths(num, MAX_LENGTH, np.random.default_rng(0))
    return float(costs(lengths, dim).sum() / lengths.sum())
