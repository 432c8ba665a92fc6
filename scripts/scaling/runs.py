"""Subjects cluster, sweep and jobs: simulated days."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from models.catalogue import find
from scripts.benchmarks.reports import markdown
from scripts.scaling.autoscaler import Behaviour, Policy
from scripts.scaling.cluster import Cluster, Settings
from scripts.scaling.demand import DAY_S, Demand, Trace, cost_per_residue
from scripts.scaling.jobs import JobCluster, JobSettings
from scripts.scaling.outcome import Outcome, percentile
from scripts.scaling.rates import MEASURED

SLOW_UP = Policy(1, 0, 60)  # one pod a minute
SLOW_DOWN = Policy(1, 0, 120)
HEADER = ["", "utilisation", "wait p50, s", "p99, s", "latency p99, s", "mean pods", "most", "orders"]
HEADER += ["rejected", "lost", "$"]


def add_cluster(parser: argparse.ArgumentParser) -> None:
    demand, settings, behaviour = Demand(2.0, 0.6, 8, 600.0, 3.0, 2.0), Settings(1.0), Behaviour(2, 10)
    parser.add_argument("--model", default="esm2_t33_650M", help="whose costs are taken (default: esm2_t33_650M)")
    parser.add_argument(
        "--rate", type=float, help="residues/s of a device; default: as measured on 2 cores with AMX"
    )
    parser.add_argument("--requests", type=float, default=demand.requests_per_s, help="a second, mean of a day")
    parser.add_argument("--proteins", type=float, default=demand.sequences_per_request, help="of a request, mean")
    parser.add_argument("--swing", type=float, default=demand.swing, help="of the day: 0 even, 1 none at midnight")
    parser.add_argument("--bursts", type=float, default=demand.bursts_per_day, help="a day")
    parser.add_argument("--burst-s", type=float, default=demand.burst_s)
    parser.add_argument("--burst-factor", type=float, default=demand.burst_factor)
    parser.add_argument("--target", type=float, default=10.0, help="batcher_queue_size of a pod (default: 10)")
    parser.add_argument("--min", type=int, default=behaviour.min_replicas, help="pods")
    parser.add_argument("--max", type=int, default=behaviour.max_replicas, help="pods")
    parser.add_argument("--down-window", type=float, default=behaviour.down_window_s, help="stabilisation, s")
    parser.add_argument("--slow-up", action="store_true", help="one pod a minute; default: Kubernetes' 4 in 15 s")
    parser.add_argument("--slow-down", action="store_true", help="one pod in two minutes; default: all at once")
    parser.add_argument("--budget", type=int, default=settings.budget, help="BATCH_TOKENS")
    parser.add_argument("--overhead-ms", type=float, default=0.0, help="of each batch, beside its cost")
    parser.add_argument(
        "--pull-s", type=float, default=settings.pull_s, help="from the order of a pod: node and image"
    )
    parser.add_argument("--load-s", type=float, default=settings.load_s, help="then: model load")
    parser.add_argument("--balancer", default="random", choices=["random", "shortest", "shared"])
    parser.add_argument("--plot", type=Path, help="a PNG; needs matplotlib")
    _add_run(parser)


def add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=float, default=48, help="a day (default: 48)")
    parser.add_argument("--minutes", type=float, default=30, help="of one worker for a job, mean (default: 30)")
    parser.add_argument("--max", type=int, default=10, help="workers (default: 10)")
    parser.add_argument("--start-s", type=float, default=90.0, help="of a worker until its model computes")
    _add_run(parser)


def cluster(options: argparse.Namespace) -> None:
    """One day of the service under an autoscaler."""
    settings, trace, horizon = _settings(options), _trace(options), options.days * DAY_S
    outcome = Cluster(settings, trace, options.seed).run(horizon)
    _print([_row("this run", outcome, options.price)], outcome, options)
    if options.plot is not None:
        from scripts.scaling.plots import draw_day

        draw_day(options.plot, trace, outcome)


def sweep(options: argparse.Namespace) -> None:
    """The same day again with one setting changed at a time."""
    trace = _trace(options)
    rows, targets = [], {}
    for name, settings in _variants(_settings(options)):
        outcome = Cluster(settings, trace, options.seed).run(options.days * DAY_S)
        rows.append(_row(name, outcome, options.price))
        if name.startswith("target "):
            targets[settings.target] = outcome
    _print(rows, outcome, options)
    if options.plot is not None:
        from scripts.scaling.plots import draw_targets

        draw_targets(options.plot, targets)


def jobs(options: argparse.Namespace) -> None:
    """Job workers from zero, by what is counted: queued jobs, or unfinished ones."""
    rng = np.random.default_rng(options.seed)
    horizon = options.days * DAY_S
    arrivals = np.sort(rng.uniform(0, horizon, rng.poisson(options.jobs * options.days)))
    work_s = rng.exponential(options.minutes * 60, len(arrivals))
    behaviours = {
        "": Behaviour(1, options.max),
        ", window 3600 s": Behaviour(1, options.max, down_window_s=3600),
        ", one down in 2 min": Behaviour(1, options.max, down=SLOW_DOWN),
    }
    rows = []
    for name, behaviour in behaviours.items():
        for trigger in ("queued", "unfinished"):
            settings = JobSettings(trigger, behaviour=behaviour, start_s=options.start_s)
            run = JobCluster(settings, arrivals, work_s)
            outcome = run.run(horizon)
            rows.append([*_row(trigger + name, outcome, options.price)[:8], str(run.num_handed_back)])
    print(f"\n{len(arrivals)} jobs of {work_s.mean() / 60:.0f} minutes in the mean, seed {options.seed}:\n")
    print(f"{markdown([*HEADER[:8], 'handed back'], rows)}\n")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--days", type=float, default=1.0)
    parser.add_argument("--price", type=float, default=0.10, help="dollars an hour of a pod: an assumption")
    parser.add_argument("--seed", type=int, default=0)


def _settings(options: argparse.Namespace) -> Settings:
    if options.rate is None and options.model not in MEASURED:
        raise SystemExit(f"nothing was measured of {options.model}: give --rate")
    rate = options.rate or MEASURED[options.model]
    up = SLOW_UP if options.slow_up else Behaviour.up
    down = SLOW_DOWN if options.slow_down else Behaviour.down
    return Settings(
        cost_per_s=rate * cost_per_residue(find(options.model).dim),
        target=options.target,
        behaviour=Behaviour(options.min, options.max, up, down, down_window_s=options.down_window),
        budget=options.budget,
        batch_overhead_s=options.overhead_ms / 1e3,
        max_queue_cost=256 * options.budget,
        pull_s=options.pull_s,
        load_s=options.load_s,
        balancer=options.balancer,
    )


def _trace(options: argparse.Namespace) -> Trace:
    bursts = options.bursts, options.burst_s, options.burst_factor
    demand = Demand(options.requests, options.swing, *bursts, sequences_per_request=options.proteins)
    return demand.trace(options.days * DAY_S, find(options.model).dim, np.random.default_rng(options.seed))


def _variants(base: Settings) -> Iterator[tuple[str, Settings]]:
    """By name: the base first, then one change of it at a time."""
    yield "as given", base
    behaviour = base.behaviour
    for target in (2.0, 5.0, 10.0, 20.0, 50.0, 100.0):
        yield f"target {target:g}", dataclasses.replace(base, target=target)
    changed = {
        f"down window {seconds} s": dataclasses.replace(behaviour, down_window_s=float(seconds))
        for seconds in (60, 600, 1800)
    }
    changed |= {f"min {num}": dataclasses.replace(behaviour, min_replicas=num) for num in (1, 3, 4, 6)}
    changed["one up a minute"] = dataclasses.replace(behaviour, up=SLOW_UP)
    changed["one down in 2 min"] = dataclasses.replace(behaviour, down=SLOW_DOWN)
    for name, one in changed.items():
        yield name, dataclasses.replace(base, behaviour=one)
    for seconds in (10.0, 300.0):
        yield f"pull {seconds:g} s", dataclasses.replace(base, pull_s=seconds)
    yield "shortest queue", dataclasses.replace(base, balancer="shortest")
    fixed = dataclasses.replace(behaviour, min_replicas=behaviour.max_replicas)
    yield f"always {behaviour.max_replicas}", dataclasses.replace(base, behaviour=fixed)


def _row(name: str, outcome: Outcome, price_per_hour: float) -> list[str]:
    seconds = [
        f"{percentile(values, percent):,.1f}"
        for values, percent in ((outcome.waits_s, 50), (outcome.waits_s, 99), (outcome.latencies_s, 99))
    ]
    pods = [f"{outcome.mean_pods:.2f}", str(outcome.pods.most), str(outcome.pods.num_orders)]
    failed = [f"{outcome.num_rejected:,}", f"{outcome.num_lost:,}"]
    return [name, f"{outcome.utilisation:.0%}", *seconds, *pods, *failed, f"{outcome.price(price_per_hour):.2f}"]


def _print(rows: list[list[str]], outcome: Outcome, options: argparse.Namespace) -> None:
    print(f"\n{options.model}, {outcome.num_arrived:,} requests in {options.days:g} days, seed {options.seed}:\n")
    print(f"{markdown(HEADER, rows)}\n")
