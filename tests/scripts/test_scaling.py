"""The simulation of a cluster, against queueing theory and the formulas of Kubernetes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from models.planning import cost
from scripts.scaling.__main__ import main
from scripts.scaling.autoscaler import Autoscaler, Behaviour, Policy, desired_replicas, replicas_for_total
from scripts.scaling.capacity import cost_of, load_of
from scripts.scaling.cluster import Balancer, Cluster, Settings
from scripts.scaling.demand import DAY_S, Demand, Trace, costs
from scripts.scaling.jobs import JobCluster, JobSettings
from scripts.scaling.outcome import Outcome
from scripts.scaling.rates import Rate

UNIT = 1_000_000  # cost that takes a second, so that whole numbers are fine enough
ONE_BY_ONE = Settings(UNIT, budget=0, stretch=0, max_queue_cost=math.inf, balancer="shared")
NUM = 15_000  # requests of a run
TOLERANCE = 0.06  # means of four runs are within 3.2% of theory, the share that waits in one run within 5.5%


def queue(load: float, num_pods: int, is_random: bool, seed: int, num: int) -> tuple[Outcome, Trace]:
    """Poisson arrivals at `load` of the capacity of servers with a mean service of 1 s, one request at a time."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / (load * num_pods), num))
    service = np.maximum(1, rng.exponential(UNIT, num)) if is_random else np.full(num, UNIT)
    trace = Trace(arrivals, np.arange(num + 1), service.astype(np.int64))
    settings = dataclasses.replace(ONE_BY_ONE, behaviour=Behaviour(num_pods, num_pods))
    return Cluster(settings, trace, seed).run(arrivals[-1] + 100), trace


def mean_wait(load: float, num_pods: int, is_random: bool) -> float:
    return float(np.mean([queue(load, num_pods, is_random, seed, NUM)[0].waits_s.mean() for seed in range(4)]))


def erlang_c(num_servers: int, load: float) -> float:
    """Probability of having to wait in M/M/c. Source: Kleinrock 1975, Queueing Systems I, equation 3.40."""
    offered = num_servers * load
    waiting = offered**num_servers / math.factorial(num_servers) / (1 - load)
    return waiting / (sum(offered**k / math.factorial(k) for k in range(num_servers)) + waiting)


def test_waits_of_one_exponential_server_are_those_of_m_m_1() -> None:
    assert mean_wait(0.5, 1, is_random=True) == pytest.approx(0.5 / (1 - 0.5), rel=TOLERANCE)


def test_waits_of_one_constant_server_are_those_of_m_d_1() -> None:
    assert mean_wait(0.5, 1, is_random=False) == pytest.approx(0.5 / (2 * (1 - 0.5)), rel=TOLERANCE)


def test_waits_of_three_servers_are_those_of_erlang() -> None:
    assert mean_wait(0.5, 3, is_random=True) == pytest.approx(erlang_c(3, 0.5) / (3 * (1 - 0.5)), rel=TOLERANCE)
    run, _ = queue(0.5, 3, is_random=True, seed=0, num=NUM)
    assert (run.waits_s > 0).mean() == pytest.approx(erlang_c(3, 0.5), rel=TOLERANCE)
    assert run.utilisation == pytest.approx(0.5, rel=TOLERANCE)


def test_erlang_c_is_what_one_computes_by_hand() -> None:
    assert erlang_c(1, 0.3) == pytest.approx(0.3)
    assert erlang_c(2, 0.5) == pytest.approx(1 / 3)  # 2 load^2 / (1 + load)


def test_every_wait_is_that_of_lindleys_recursion() -> None:
    run, trace = queue(0.8, 1, is_random=True, seed=1, num=2000)
    wait, waits = 0.0, [0.0]
    for service_s, gap_s in zip(trace.costs[:-1] / UNIT, np.diff(trace.arrivals), strict=True):
        wait = max(0.0, wait + service_s - gap_s)
        waits.append(wait)
    np.testing.assert_allclose(run.waits_s, waits, atol=1e-6)


@pytest.mark.parametrize("balancer", ["random", "shortest", "shared"])
def test_every_request_is_answered_rejected_lost_or_open(balancer: Balancer) -> None:
    demand = Demand(3.0, 0.5, bursts_per_day=100, burst_s=120, sequences_per_request=3)
    trace = demand.trace(3600, 1280, np.random.default_rng(2))
    settings = Settings(3000, 3.0, Behaviour(1, 4), max_queue_cost=20_000, grace_s=2.0, balancer=balancer)
    run = Cluster(settings, trace, seed=0).run(1800)
    assert run.num_arrived == (trace.arrivals <= 1800).sum() < len(trace)
    assert run.num_answered + run.num_rejected + run.num_lost + run.num_open == run.num_arrived
    assert min(run.num_answered, run.num_rejected) > 0
    assert (run.waits_s >= 0).all()
    assert (run.latencies_s > run.waits_s).all()
    assert run.pods.busy_s <= run.pods.ready_s <= run.pods.paid_s


def test_a_pod_that_is_ended_with_work_left_loses_it() -> None:
    trace = Trace(np.array([16.0]), np.array([0, 2]), np.array([UNIT, 1000 * UNIT]))
    settings = dataclasses.replace(ONE_BY_ONE, balancer="shortest", grace_s=45, behaviour=Behaviour(1, 1))
    run = Cluster(settings, trace, seed=0)
    run._clock.at(20.0, lambda: run._dismiss(run._pods[0]))
    found = run.run(200)
    assert (found.num_lost, found.num_answered, found.num_open) == (1, 0, 0)
    assert found.pods.paid_s == pytest.approx(65 + 170)  # and one in its place, ordered at the next look, at 30


def test_one_seed_gives_one_day() -> None:
    demand = Demand(1.0, 0.5, 20, sequences_per_request=2)
    settings = Settings(1500, 5.0, Behaviour(1, 4))
    first, again = (
        Cluster(settings, demand.trace(3600, 1280, np.random.default_rng(7)), seed=7).run(3600) for _ in range(2)
    )
    np.testing.assert_array_equal(first.latencies_s, again.latencies_s)
    assert first.pods == again.pods


def test_the_day_has_as_many_requests_as_its_rate_says() -> None:
    trace = Demand(1.0, swing=0.6).trace(DAY_S, 1280, np.random.default_rng(0))
    assert len(trace) == pytest.approx(DAY_S, rel=0.015)  # five deviations of a Poisson count of 86,400 are 1.7%
    night, noon = np.histogram(trace.arrivals, [0, DAY_S / 24, 11.5 * DAY_S / 24, 12.5 * DAY_S / 24])[0][[0, 2]]
    assert noon / night == pytest.approx(1.6 / 0.4, rel=0.15)


def test_costs_are_those_of_the_batcher() -> None:
    lengths = [1, 40, 585, 5000]
    assert costs(np.array(lengths), 1280).tolist() == [cost(length, 1280) for length in lengths]


@pytest.mark.parametrize(
    ("metrics", "current", "pending", "missing", "desired"),
    [
        ([20.0], 1, 0, 0, 2),  # ceil(1 x 20 / 10)
        ([10.9, 10.9], 2, 0, 0, 2),  # within the tolerance of 0.1
        ([11.2, 11.2], 2, 0, 0, 3),
        ([9.1, 9.1], 2, 0, 0, 2),
        ([2.0, 2.0, 2.0, 2.0], 4, 0, 0, 1),
        ([0.0, 0.0], 2, 0, 0, 0),  # the bounds keep it up
        ([20.0, 20.0], 4, 2, 0, 4),  # two that come count as 0: 40 / 4 is the target
        ([40.0, 40.0], 4, 2, 0, 8),
        ([20.0, 20.0], 3, 0, 1, 4),  # without a metric: 0 on the way up
        ([5.0, 5.0], 4, 0, 2, 3),  # and the target on the way down: 30 / 4 / 10
        ([], 2, 2, 0, 2),
    ],
)
def test_replicas_are_those_of_kubernetes(
    metrics: list[float], current: int, pending: int, missing: int, desired: int
) -> None:
    assert desired_replicas(metrics, current, 10.0, pending, missing) == desired


def test_a_total_is_shared_out() -> None:
    assert replicas_for_total(25, 1, 10) == 3
    assert replicas_for_total(21, 2, 10) == 2  # within the tolerance
    assert replicas_for_total(0, 3, 10) == 0


def test_going_down_waits_for_the_window() -> None:
    autoscaler = Autoscaler(Behaviour(1, 10))
    assert autoscaler.decide(0, 2, 8) == 6  # four more in 15 s at most
    assert autoscaler.decide(15, 6, 8) == 8
    assert autoscaler.decide(300, 8, 2) == 8  # 8 was wanted at 15
    assert autoscaler.decide(316, 8, 2) == 2


def test_policies_hold_over_their_periods() -> None:
    slow = Behaviour(1, 10, up=Policy(1, 0, 60), down=Policy(1, 0, 120), down_window_s=0)
    autoscaler = Autoscaler(slow)
    assert [autoscaler.decide(time, num, 9) for time, num in ((0, 2), (15, 3), (45, 3), (60, 3))] == [3, 3, 3, 4]
    autoscaler = Autoscaler(slow)
    assert [autoscaler.decide(time, num, 1) for time, num in ((0, 5), (60, 4), (120, 4))] == [4, 4, 3]


def test_replicas_stay_within_bounds() -> None:
    assert Autoscaler(Behaviour(2, 3)).decide(0, 2, 50) == 3
    assert Autoscaler(Behaviour(2, 3, down_window_s=0)).decide(0, 3, 0) == 2


def test_workers_come_from_none_and_go_again() -> None:
    run = JobCluster(JobSettings(start_s=90, cooldown_s=300), np.array([10.0]), np.array([600.0]))
    found = run.run(3600)
    # Polled at 30, ready at 120, done at 720; counted last at 720, so gone 300 s later
    assert found.waits_s.tolist() == pytest.approx([110])
    assert found.latencies_s.tolist() == pytest.approx([710])
    assert found.pods.counts == [(30.0, 1), (990.0, 0)]
    assert run.num_handed_back == 0


def test_a_worker_that_only_queued_jobs_keep_is_taken_from_its_job() -> None:
    run = JobCluster(JobSettings("queued"), np.array([10.0]), np.array([1000.0]))
    found = run.run(7200)
    assert run.num_handed_back > 0
    assert found.num_answered == 1
    # Every time, what is behind the last window is done again: less than two seconds
    assert 1000 <= found.pods.busy_s <= 1000 + 2 * run.num_handed_back


def test_every_job_is_done_or_open() -> None:
    rng = np.random.default_rng(3)
    run = JobCluster(JobSettings(), np.sort(rng.uniform(0, 7200, 40)), rng.exponential(900, 40))
    found = run.run(7200)
    assert found.num_answered + found.num_open == found.num_arrived == 40


def test_time_and_price_are_those_computed_by_hand() -> None:
    # A million proteins of 360 residues at 100,000 residues/s: 3,600 s
    found = cost_of(Rate("H100", "esm2_t33_650M", 100_000, False), 4.0, 360, 24e6)
    assert (found.hours_per_million, found.price_per_million) == pytest.approx((1.0, 4.0))
    assert (found.days, found.price) == pytest.approx((1.0, 96.0))


def test_loads_are_those_computed_by_hand() -> None:
    # 100 proteins/s of 350 residues of width 1,280 in float16: 89.6 MB/s, and 2.6 kB each in Redis
    found = load_of(Rate("H100", "esm2_t33_650M", 35_000, False), 350, redis_gb=2.6)
    assert found.proteins_per_s == pytest.approx(100)
    assert found.network_mb_per_s == pytest.approx(89.6)
    assert found.redis_hours == pytest.approx(2.6e9 / 2600 / 100 / 3600)
    assert found.residues_redis_minutes == pytest.approx(2.6e9 / 824_000 / 100 / 60)
    assert found.disk_gb_per_hour == pytest.approx(89.6e6 * 0.921 * 3600 / 1e9)


def test_commands_print_tables(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["cost", "--price", "H100=2", "--rate", "H100,prot_t5=200000", "--model", "prot_t5"])
    assert "| H100             | prot_t5 |  measured |    200,000 |" in capsys.readouterr().out
    main(["sizes"])
    main(["limits", "--model", "esm2_t33_650M"])
    main(["jobs", "--days", "0.2"])
    main(["cluster", "--days", "0.01", "--plot", str(tmp_path / "day.png")])
    assert "esm2_t33_650M" in capsys.readouterr().out
    assert (tmp_path / "day.png").stat().st_size < 150_000


def test_unknown_names_are_refused() -> None:
    with pytest.raises(SystemExit, match="no device TPU"):
        main(["cost", "--price", "TPU=1"])
    with pytest.raises(SystemExit, match="nothing was measured"):
        main(["cluster", "--model", "esm2_t6_8M"])
