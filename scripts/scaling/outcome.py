"""What came of a simulated run."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Pods:
    """Pods over time: what they are paid for, and what of it they compute.

    counts: (seconds, pods that are paid for) whenever that changes. Sums in seconds: paid_s from the order of a
    pod to its end, ready_s while it serves, busy_s while it computes. num_orders: pods that were ordered.
    """

    counts: list[tuple[float, int]] = field(default_factory=list)
    paid_s: float = 0.0
    ready_s: float = 0.0
    busy_s: float = 0.0
    num_orders: int = 0

    def change(self, now: float, by: int) -> None:
        self.num_orders += by > 0
        self.counts.append((now, (self.counts[-1][1] if self.counts else 0) + by))

    @property
    def most(self) -> int:
        return max((count for _, count in self.counts), default=0)


@dataclass(frozen=True)
class Outcome:
    """waits_s, latencies_s: of each request that was answered, until its first sequence is begun and until its
    last is done; of a job, until it is first begun and until it is done. answered_arrivals: when they came.
    num_arrived is the sum of the other four.
    """

    horizon_s: float
    num_arrived: int
    num_answered: int
    num_rejected: int
    num_lost: int
    num_open: int
    answered_arrivals: np.ndarray
    waits_s: np.ndarray
    latencies_s: np.ndarray
    pods: Pods

    @property
    def utilisation(self) -> float:
        """Share of the ready pods' time in which they computed."""
        return self.pods.busy_s / self.pods.ready_s if self.pods.ready_s else 0.0

    @property
    def mean_pods(self) -> float:
        return self.pods.paid_s / self.horizon_s

    def price(self, price_per_hour: float) -> float:
        """Of all pods, from their order to their end."""
        return self.pods.paid_s / 3600 * price_per_hour


def percentile(values: np.ndarray, percent: float) -> float:
    """NaN where there are none."""
    return float(np.percentile(values, percent)) if len(values) else float("nan")
