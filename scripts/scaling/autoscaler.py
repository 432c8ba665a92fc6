"""How many pods Kubernetes would have: its HorizontalPodAutoscaler, and KEDA's step to and from zero.

Sources: kubernetes, pkg/controller/podautoscaler/replica_calculator.go (calcPlainMetricReplicas,
GetExternalPerPodMetricReplicas) and horizontal.go (stabilizeRecommendationWithBehaviors, calculateScaleUpLimit).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

TOLERANCE = 0.1  # kube-controller-manager, --horizontal-pod-autoscaler-tolerance
SYNC_S = 15.0  # --horizontal-pod-autoscaler-sync-period


@dataclass(frozen=True)
class Policy:
    """In period_s at most so many pods, or so many percent of what there were; the larger of the two."""

    max_pods: int
    max_percent: float
    period_s: float


@dataclass(frozen=True)
class Behaviour:
    """Bounds, stabilisation windows in seconds, and how fast it may go. The defaults are those of Kubernetes."""

    min_replicas: int
    max_replicas: int
    up: Policy = Policy(4, 100, 15)
    down: Policy = Policy(0, 100, 15)
    up_window_s: float = 0.0
    down_window_s: float = 300.0


def desired_replicas(
    metrics: Sequence[float], current: int, target: float, num_pending: int = 0, num_missing: int = 0
) -> int:
    """Replicas for a metric of pods: ceil(replicas x mean / target), unless the mean is within the tolerance.

    Args:
        metrics: of each pod that has one.
        num_pending: pods without a node or an image yet: 0 on the way up, not counted on the way down.
        num_missing: pods that run and have no metric: 0 on the way up, the target on the way down.
    """
    if not metrics:
        return current
    ratio = sum(metrics) / len(metrics) / target
    is_up = ratio > 1
    if num_missing == 0 and not (is_up and num_pending):
        return current if _is_near(ratio) else math.ceil(round(ratio * len(metrics), 9))
    counted = len(metrics) + num_missing + (num_pending if is_up else 0)
    usage = sum(metrics) + (0.0 if is_up else target * num_missing)
    adjusted = usage / counted / target
    if _is_near(adjusted) or (adjusted > 1) != is_up:
        return current
    desired = math.ceil(round(adjusted * counted, 9))
    return max(desired, current) if is_up else min(desired, current)


def replicas_for_total(total: float, current: int, target: float) -> int:
    """The same for a metric of the whole, such as KEDA's: ceil(total / target for each pod)."""
    if current and _is_near(total / (target * current)):
        return current
    return math.ceil(round(total / target, 9))


def _is_near(ratio: float) -> bool:
    return abs(1 - ratio) <= TOLERANCE + 1e-9


class Autoscaler:
    """Turns what is desired into what is done: windows first, then policies, then bounds."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self._desired: deque[tuple[float, int]] = deque()
        self._changes: deque[tuple[float, int]] = deque()

    def decide(self, now: float, current: int, desired: int) -> int:
        """Replicas from now on."""
        behaviour = self.behaviour
        bounded = min(max(desired, behaviour.min_replicas), behaviour.max_replicas)
        stable = self._stabilise(now, current, bounded)
        if stable > current:
            stable = min(stable, max(current, self._most(now, current)))
        elif stable < current:
            stable = max(stable, min(current, self._least(now, current)))
        if stable != current:
            self._changes.append((now, stable - current))
        return stable

    def _stabilise(self, now: float, current: int, desired: int) -> int:
        """Up to the least that was desired in the window of up, down to the most in that of down."""
        windows = self.behaviour.up_window_s, self.behaviour.down_window_s
        self._desired.append((now, desired))
        while self._desired[0][0] < now - max(windows):
            self._desired.popleft()
        up = min(one for when, one in self._desired if when >= now - windows[0])
        down = max(one for when, one in self._desired if when >= now - windows[1])
        return min(max(current, up), down)

    def _most(self, now: float, current: int) -> int:
        policy = self.behaviour.up
        start = self._start(now, current, policy.period_s)
        return max(start + policy.max_pods, math.ceil(start * (1 + policy.max_percent / 100)))

    def _least(self, now: float, current: int) -> int:
        policy = self.behaviour.down
        start = self._start(now, current, policy.period_s)
        return min(start - policy.max_pods, int(start * (1 - policy.max_percent / 100)))

    def _start(self, now: float, current: int, period_s: float) -> int:
        """Replicas at the start of the period that ends now."""
        longest = max(self.behaviour.up.period_s, self.behaviour.down.period_s)
        while self._changes and self._changes[0][0] <= now - longest:
            self._changes.popleft()
        return current - sum(change for when, change in self._changes if when > now - period_s)
