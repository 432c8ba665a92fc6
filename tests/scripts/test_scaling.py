"""The simulation of a cluster, against queueing theory and the formulas of Kubernetes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scripts.scaling.autoscaler import Autoscaler, Behaviour, Policy, desired_replicas, replicas_for_total
from scripts.scaling.clock import Clock
from scripts.scaling.cluster import Cluster, Settings
from scripts.scaling.demand import DAY_S, Demand, Trace, costs
from scripts.scaling.jobs import JobCluster, JobSettings
from scripts.scaling.outcome import Outcome

UNIT = 1_000_000  # cost that takes a second, so that whole numbers are fine enough
DAYS = 2 * DAY_S


def queue(load: float, num_pods: int, is_random: bool, seed: int, num: int = 60_000) -> Outcome:
    """Poisson arrivals at `load` of the capacity of servers with a mean service of 1 s, one request at a time."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / (load * num_pods), num))
    service = np.maximum(1, rng.exponential(UNIT, num)) if is_random else np.full(num, UNIT)
    trace = Trace(arrivals, np.arange(num + 1), service.astype(np.int64))
    settings = Settings(
        cost_per_s=UNIT,
        budget=0,
        stretch=0,
        max_queue_cost=math.inf,
        balancer="shared",
        behaviour=Behaviour(num_pods, num_pods),
    )
    return Cluster(settings, trace, seed).run(arrivals[-1] + 1000)


def erlang_c(num_servers: int, load: float) -> float:
    """Probability of having to wait in M/M/c. Source: Erlang 1917; Kleinrock 1975, Queueing Systems, 3.40."""
    offered = num_servers * load
    waiting = offered**num_servers / math.factorial(num_servers) / (1 - load)
    return waiting / (sum(offered**k / math.factorial(k) for k in range(num_servers)) + waiting)


# Tolerances: five seeds of 60,000 requests each are within 4% of theory; see the mean of three here
def mean_wait(load: float, num_pods: int, is_random: bool) -> float:
    runs = [queue(load, num_pods, is_random, seed) for seed in range(3)]
    return float(np.mean([run.waits_s.mean() for run in runs]))


def test_waits_of_one_exponential_server_are_those_of_m_m_1() -> None:
    load = 0.7
    assert mean_wait(load, 1, is_random=True) == pytest.approx(load / (1 - load), rel=0.05)


def test_waits_of_one_constant_server_are_those_of_m_d_1() -> None:
    load = 0.7
    assert mean_wait(load, 1, is_random=False) == pytest.approx(load / (2 * (1 - load)), rel=0.05)


def test_waits_of_several_servers_are_those_of_erlang() -> None:
    load, num = 0.7, 4
    assert mean_wait(load, num, is_random=True) == pytest.approx(
        erlang_c(num, load) / (num * (1 - load)), rel=0.05
    )
    run = queue(load, num, is_random=True, seed=0)
    assert (run.waits_s > 0).mean() == pytest.approx(erlang_c(num, load), rel=0.05)
    assert run.utilisation == pytest.approx(load, rel=0.03)


def test_erlang_c_of_one_server_is_its_load() -> None:
    assert erlang_c(1, 0.3) == pytest.approx(0.3)
    assert erlang_c(2, 0.5) == pytest.approx(1 / 3)  # Kleinrock: 2 rho^2 / (1 + rho)
