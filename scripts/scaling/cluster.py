"""The service on a cluster: pods with a device each, a balancer, an autoscaler that looks at their queues.

Each pod has the service's own queue (`models.schedule`), so who goes first is what the batcher would say.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from models.schedule import STRETCH, Entry, Schedule
from scripts.scaling.autoscaler import SYNC_S, Autoscaler, Behaviour, desired_replicas
from scripts.scaling.clock import Clock
from scripts.scaling.demand import Trace
from scripts.scaling.outcome import Outcome, Pods

Balancer = Literal["random", "shortest", "shared"]


@dataclass(frozen=True)
class Settings:
    """cost_per_s: tokens' worth of arithmetic that a device does in a second; batch_overhead_s: of each batch
    beside it.

    pull_s, load_s: from the order of a pod until its container runs, then until its model computes.
    metric_delay_s: age of what the autoscaler sees. grace_s: that a pod has for what it holds when it is told to
    end. max_queue_cost: of what may wait in a pod. balancer: `random` as kube-proxy does, `shortest` queue, or one
    queue for all, which the service does not have. target: of `batcher_queue_size`, sequences that wait in a pod
    in the mean.
    """

    cost_per_s: float
    target: float = 100.0
    behaviour: Behaviour = field(default_factory=lambda: Behaviour(2, 6))
    budget: int = 4096
    batch_overhead_s: float = 0.0
    max_queue_cost: float = 256 * 4096
    pull_s: float = 60.0
    load_s: float = 30.0
    metric_delay_s: float = 30.0
    grace_s: float = 45.0
    balancer: Balancer = "random"
    stretch: float = STRETCH


@dataclass(eq=False)
class Pod:
    """held: the sequences that a device computes now."""

    schedule: Schedule[int]
    ordered: float
    ready: float = -1.0
    busy_s: float = 0.0
    held: list[Entry[int]] = field(default_factory=list)
    is_pulled: bool = False
    is_leaving: bool = False
    is_gone: bool = False

    @property
    def is_ready(self) -> bool:
        return self.ready >= 0 and not self.is_leaving


class Cluster:
    """One run. Requests are numbers: those of the trace."""

    def __init__(self, settings: Settings, trace: Trace, seed: int) -> None:
        self.settings = settings
        self._trace = trace
        self._rng = np.random.default_rng(seed)
        self._clock = Clock()
        self._autoscaler = Autoscaler(settings.behaviour)
        self._shared: Schedule[int] = Schedule()
        self._pods: list[Pod] = []
        self._seen: deque[tuple[float, Mapping[int, int]]] = deque()
        self._measures = Pods()
        self._left = np.diff(trace.starts)  # sequences of each request that are not computed yet
        self._begun = np.full(len(trace), np.nan)
        self._done = np.full(len(trace), np.nan)
        self._is_rejected = np.zeros(len(trace), bool)
        self._is_lost = np.zeros(len(trace), bool)
        self._num_arrived = 0

    def run(self, horizon_s: float) -> Outcome:
        """Starts with the least pods, all ready, and stops at the horizon."""
        for _ in range(self.settings.behaviour.min_replicas):
            self._make_ready(self._order())
        if len(self._trace):
            self._clock.at(self._trace.arrivals[0], self._arrive)
        self._clock.every(SYNC_S, self._scale)
        self._clock.run(horizon_s)
        for pod in self._pods:
            self._account(pod)
        return self._outcome(horizon_s)

    def _outcome(self, horizon_s: float) -> Outcome:
        answered = ~np.isnan(self._done)
        num_rejected, num_lost = int(self._is_rejected.sum()), int(self._is_lost.sum())
        return Outcome(
            horizon_s=horizon_s,
            num_arrived=self._num_arrived,
            num_answered=int(answered.sum()),
            num_rejected=num_rejected,
            num_lost=num_lost,
            num_open=int((self._left[: self._num_arrived] > 0).sum()) - num_rejected - num_lost,
            answered_arrivals=self._trace.arrivals[answered],
            waits_s=(self._begun - self._trace.arrivals)[answered],
            latencies_s=(self._done - self._trace.arrivals)[answered],
            pods=self._measures,
        )

    def _arrive(self) -> None:
        request = self._num_arrived
        self._num_arrived += 1
        if self._num_arrived < len(self._trace):
            self._clock.at(self._trace.arrivals[self._num_arrived], self._arrive)
        pods = [pod for pod in self._pods if pod.is_ready]
        pod = self._choose(pods) if pods else None
        if pod is None or pod.schedule.cost >= self.settings.max_queue_cost:
            self._is_rejected[request] = True
            return
        self._enter(pod.schedule, request)
        for other in pods if self.settings.balancer == "shared" else [pod]:
            self._start(other)

    def _choose(self, pods: list[Pod]) -> Pod:
        if self.settings.balancer == "shortest":
            return min(pods, key=lambda pod: pod.schedule.cost + sum(entry.cost for entry in pod.held))
        return pods[self._rng.integers(len(pods))]

    def _enter(self, schedule: Schedule[int], request: int) -> None:
        """Due times as in `Batcher._enter_all`."""
        now, ahead = self._clock.now, 0
        for cost in self._trace.costs[self._trace.starts[request] : self._trace.starts[request + 1]].tolist():
            ahead += cost
            due = now + self.settings.stretch * ahead / self.settings.cost_per_s
            schedule.put(Entry(request, cost, now, due))

    def _start(self, pod: Pod) -> None:
        """A batch, if the device is free and something waits."""
        if pod.held or pod.is_gone or pod.ready < 0 or not pod.schedule.size:
            return
        pod.held = pod.schedule.pick(self.settings.budget, max_items=pod.schedule.size)
        now = self._clock.now
        for entry in pod.held:
            self._begun[entry.item] = np.fmin(self._begun[entry.item], now)
        cost = sum(entry.cost for entry in pod.held)
        seconds = cost / self.settings.cost_per_s + self.settings.batch_overhead_s
        self._clock.after(seconds, functools.partial(self._finish, pod, seconds))

    def _finish(self, pod: Pod, seconds: float) -> None:
        if pod.is_gone:
            return
        pod.busy_s += seconds
        for entry in pod.held:
            self._left[entry.item] -= 1
            if not self._left[entry.item]:
                self._done[entry.item] = self._clock.now
        pod.held = []
        self._start(pod)
        if pod.is_leaving and not pod.held:
            self._end(pod)

    def _order(self) -> Pod:
        is_shared = self.settings.balancer == "shared"
        pod = Pod(self._shared if is_shared else Schedule(), self._clock.now)
        self._pods.append(pod)
        self._measures.change(self._clock.now, +1)
        return pod

    def _make_pulled(self, pod: Pod) -> None:
        if not pod.is_gone:
            pod.is_pulled = True
            self._clock.after(self.settings.load_s, functools.partial(self._make_ready, pod))

    def _make_ready(self, pod: Pod) -> None:
        if not pod.is_gone:
            pod.is_pulled, pod.ready = True, self._clock.now
            self._start(pod)

    def _scale(self) -> None:
        """One look of the autoscaler, at what was `metric_delay_s` ago."""
        now = self._clock.now
        self._seen.append((now, {id(pod): pod.schedule.size for pod in self._pods if pod.is_ready}))
        while len(self._seen) > 1 and self._seen[1][0] <= now - self.settings.metric_delay_s:
            self._seen.popleft()
        when, sizes = self._seen[0]
        staying = [pod for pod in self._pods if not pod.is_leaving]
        metrics = [sizes[id(pod)] for pod in staying if id(pod) in sizes]
        if when > now - self.settings.metric_delay_s:
            return
        num_pending = sum(not pod.is_pulled for pod in staying)
        num_missing = len(staying) - len(metrics) - num_pending
        desired = desired_replicas(metrics, len(staying), self.settings.target, num_pending, num_missing)
        wanted = self._autoscaler.decide(now, len(staying), desired)
        for _ in range(wanted - len(staying)):
            self._clock.after(self.settings.pull_s, functools.partial(self._make_pulled, self._order()))
        # First go those that are not ready, then the youngest: kubernetes, controller_utils.go, ActivePods
        by_turn = sorted(staying, key=lambda pod: (pod.is_ready, -pod.ordered))
        for pod in by_turn[: max(0, len(staying) - wanted)]:
            self._dismiss(pod)

    def _dismiss(self, pod: Pod) -> None:
        """It takes nothing new, and has some time for what it holds."""
        pod.is_leaving = True
        if pod.held or (self.settings.balancer != "shared" and pod.schedule.size):
            self._clock.after(self.settings.grace_s, functools.partial(self._end, pod))
        else:
            self._end(pod)

    def _end(self, pod: Pod) -> None:
        """Its time is over; requests that it still holds are lost."""
        if pod.is_gone:
            return
        pod.is_gone = True
        waiting = [] if self.settings.balancer == "shared" else pod.schedule.take_all()
        for entry in pod.held + waiting:
            self._is_lost[entry.item] = True
        self._account(pod)
        self._pods.remove(pod)

    def _account(self, pod: Pod) -> None:
        now = self._clock.now
        self._measures.paid_s += now - pod.ordered
        self._measures.ready_s += now - pod.ready if pod.ready >= 0 else 0.0
        self._measures.busy_s += pod.busy_s
        if pod.is_gone:
            self._measures.change(now, -1)
