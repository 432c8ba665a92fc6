"""Workers of jobs that KEDA brings up from none, by the length of the queue in Redis.

A job is one worker's from its start to its end; more workers make a queue shorter, not a job. A worker that is
told to end hands its job back, and the next one goes on behind its last window (docs/decisions/0019-jobs.md).
"""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from scripts.scaling.autoscaler import SYNC_S, Autoscaler, Behaviour, replicas_for_total
from scripts.scaling.clock import Clock
from scripts.scaling.outcome import Outcome, Pods

Trigger = Literal["queued", "unfinished"]


@dataclass(frozen=True)
class JobSettings:
    """trigger: what is counted, jobs that wait for a worker or these and those under way. target: of it for each
    worker.

    start_s: from the order of a worker until its model computes. polling_s, cooldown_s: KEDA's pollingInterval,
    which is also the age of the count, and cooldownPeriod. window_s: `serving.jobs.windows.WINDOW_S`.
    """

    trigger: Trigger = "unfinished"
    target: float = 1.0
    behaviour: Behaviour = field(default_factory=lambda: Behaviour(1, 10))
    start_s: float = 90.0
    polling_s: float = 30.0
    cooldown_s: float = 300.0
    window_s: float = 2.0


@dataclass(eq=False)
class _Worker:
    ordered: float
    ready: float = -1.0
    job: int | None = None
    begun: float = 0.0
    busy_s: float = 0.0
    is_gone: bool = False


class JobCluster:
    """One run.

    Args:
        arrivals: (N,) seconds, in order.
        work_s: (N,) that one worker needs for each job.
    """

    def __init__(self, settings: JobSettings, arrivals: np.ndarray, work_s: np.ndarray) -> None:
        self.settings = settings
        self.num_handed_back = 0
        self._clock = Clock()
        self._autoscaler = Autoscaler(settings.behaviour)
        self._arrivals, self._left_s = arrivals, work_s.astype(float)
        self._queue: deque[int] = deque()
        self._workers: list[_Worker] = []
        self._measures = Pods()
        self._begun = np.full(len(arrivals), np.nan)
        self._done = np.full(len(arrivals), np.nan)
        self._num_arrived = 0
        self._active = -np.inf
        self._polled = 0

    def run(self, horizon_s: float) -> Outcome:
        """Starts with no worker, and stops at the horizon."""
        for job, time in enumerate(self._arrivals):
            self._clock.at(float(time), functools.partial(self._arrive, job))
        self._clock.every(self.settings.polling_s, self._poll)
        self._clock.every(SYNC_S, self._scale)
        self._clock.run(horizon_s)
        for worker in self._workers:
            if worker.job is not None:
                worker.busy_s += horizon_s - worker.begun
            self._account(worker)
        done = ~np.isnan(self._done)
        return Outcome(
            horizon_s=horizon_s,
            num_arrived=self._num_arrived,
            num_answered=int(done.sum()),
            num_rejected=0,
            num_lost=0,
            num_open=len(self._queue) + sum(worker.job is not None for worker in self._workers),
            answered_arrivals=self._arrivals[done],
            waits_s=(self._begun - self._arrivals)[done],
            latencies_s=(self._done - self._arrivals)[done],
            pods=self._measures,
        )

    def _arrive(self, job: int) -> None:
        self._num_arrived += 1
        self._queue.append(job)
        for worker in self._workers:
            self._take(worker)

    def _take(self, worker: _Worker) -> None:
        if worker.job is not None or worker.ready < 0 or worker.is_gone or not self._queue:
            return
        worker.job, worker.begun = self._queue.popleft(), self._clock.now
        self._begun[worker.job] = np.fmin(self._begun[worker.job], self._clock.now)
        self._clock.after(self._left_s[worker.job], functools.partial(self._finish, worker))

    def _finish(self, worker: _Worker) -> None:
        if worker.is_gone or worker.job is None:
            return
        worker.busy_s += self._clock.now - worker.begun
        self._done[worker.job] = self._clock.now
        worker.job = None
        self._take(worker)

    def _make_ready(self, worker: _Worker) -> None:
        if not worker.is_gone:
            worker.ready = self._clock.now
            self._take(worker)

    def _count(self) -> int:
        under_way = sum(worker.job is not None for worker in self._workers)
        return len(self._queue) + (under_way if self.settings.trigger == "unfinished" else 0)

    def _poll(self) -> None:
        """KEDA's own part: from none to one, and back when nothing was counted for the time of cooling down."""
        self._polled = self._count()
        now = self._clock.now
        if self._polled:
            self._active = now
            if not self._workers:
                self._order()
        elif now - self._active >= self.settings.cooldown_s:
            for worker in list(self._workers):
                self._dismiss(worker)

    def _scale(self) -> None:
        """The HorizontalPodAutoscaler's part: between one and the most."""
        num = len(self._workers)
        if not num:
            return
        desired = replicas_for_total(self._polled, num, self.settings.target)
        wanted = self._autoscaler.decide(self._clock.now, num, desired)
        for _ in range(wanted - num):
            self._order()
        # The youngest go first, whatever they do: no controller knows of jobs
        for worker in sorted(self._workers, key=lambda worker: -worker.ordered)[: max(0, num - wanted)]:
            self._dismiss(worker)

    def _order(self) -> None:
        worker = _Worker(self._clock.now)
        self._workers.append(worker)
        self._measures.change(self._clock.now, +1)
        self._clock.after(self.settings.start_s, functools.partial(self._make_ready, worker))

    def _dismiss(self, worker: _Worker) -> None:
        """Its job goes back to the front, less the whole windows that were done."""
        now = self._clock.now
        worker.is_gone = True
        self._workers.remove(worker)
        if worker.job is not None:
            spent = now - worker.begun
            worker.busy_s += spent
            self._left_s[worker.job] -= spent - spent % self.settings.window_s
            self._queue.appendleft(worker.job)
            self.num_handed_back += 1
        self._account(worker)
        self._measures.change(now, -1)
        for other in self._workers:
            self._take(other)

    def _account(self, worker: _Worker) -> None:
        now = self._clock.now
        self._measures.paid_s += now - worker.ordered
        self._measures.ready_s += now - worker.ready if worker.ready >= 0 else 0.0
        self._measures.busy_s += worker.busy_s
