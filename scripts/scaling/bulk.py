"""How long a bulk run takes on how many actors: a driver plans, actors start, compute, die and are replaced.

    python -m scripts.scaling.bulk

Assumptions, beside the rates of scripts/scaling/rates.py (those of GPUs are estimates):
- an actor computes at its device's rate, whatever the others do; shards vary with the lengths by a tenth
- the driver plans one block after the other at PLANNED_PER_S; nobody waits for the object store or for the disk
- actors start START_S after they are asked for, twice as many at a time, as bulk/pool.py asks for them
- each actor dies once in MEAN_LIFE_S on average, as of a spot machine, and loses the block that it is at
- the first reading of the input, at SURVEYED_PER_S, goes before everything
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from scripts.scaling.rates import UNIREF50, mean_length, rates

# Sequences a second of one core. Source: docs/bulk.md, "Measured"
SURVEYED_PER_S = 150_000
PLANNED_PER_S = 40_000
START_S = 180.0  # a machine from a cloud, and the weights from disk
MEAN_LIFE_S = 24 * 3600.0
SHARD_SEQUENCES = 25_000  # 8 million tokens of cost (bulk/plan.py)
SPREAD = 0.1

HUMAN = 20_000


@dataclass(frozen=True)
class Run:
    """hours: of the clock; actor_hours: paid for; busy: share of them that made shards; num_deaths: of actors."""

    hours: float
    actor_hours: float
    busy: float
    num_deaths: int


def simulate(num_sequences: int, residues_per_s: float, num_actors: int, seed: int = 0) -> Run:
    """One run.

    Args:
        residues_per_s: of an actor.
    """
    rng = np.random.default_rng(seed)
    surveyed_s = num_sequences / SURVEYED_PER_S
    num_shards = max(64, -(-num_sequences // SHARD_SEQUENCES))
    of_a_shard = num_sequences / num_shards
    needed = mean_length() * of_a_shard / residues_per_s * rng.normal(1, SPREAD, num_shards).clip(0.5)
    # An actor by the time when it is free, and the time when it dies
    free = [(surveyed_s + START_S * (1 + (n + 1).bit_length()), n) for n in range(num_actors)]
    started = {n: at for at, n in free}
    dies = {n: at + rng.exponential(MEAN_LIFE_S) for at, n in free}
    heapq.heapify(free)
    paid_s = useful_s = 0.0
    num_deaths, last = 0, 0.0
    waiting = [(surveyed_s + (k + 1) * of_a_shard / PLANNED_PER_S, need) for k, need in enumerate(needed)]
    waiting.reverse()
    while waiting:
        planned, need = waiting.pop()
        at, n = heapq.heappop(free)
        end = max(at, planned) + need
        if end > dies[n]:
            paid_s += dies[n] - started[n]
            num_deaths += 1
            started[n] = dies[n] + START_S
            dies[n] = started[n] + rng.exponential(MEAN_LIFE_S)
            waiting.append((planned, need))
            heapq.heappush(free, (started[n], n))
            continue
        useful_s += need
        last = max(last, end)
        heapq.heappush(free, (end, n))
    paid_s += sum(max(0.0, at - started[n]) for at, n in free)  # an actor is let go when nothing waits
    return Run(last / 3600, paid_s / 3600, useful_s / paid_s, num_deaths)


def main() -> None:
    print("| input | device | model | actors | hours | actor-hours | busy | deaths |")
    print("|---|---|---|---|---|---|---|---|")
    found = {(rate.device, rate.model): rate for rate in rates()}
    cases = [
        ("20,000 proteins", HUMAN, "2 cores with AMX", "esm2_t33_650M", (1, 8)),
        ("20,000 proteins", HUMAN, "L4", "esm2_t33_650M", (1,)),
        ("UniRef50", UNIREF50, "L4", "esm2_t33_650M", (8, 64)),
        ("UniRef50", UNIREF50, "H100", "esm2_t33_650M", (1, 8, 64)),
        ("UniRef50", UNIREF50, "H100", "esm2_t36_3B", (64,)),
    ]
    for name, num_sequences, device, model, sizes in cases:
        rate = found[device, model]
        for size in sizes:
            run = simulate(num_sequences, rate.residues_per_s, size)
            sign = "" if rate.is_measured else "~"
            print(
                f"| {name} | {device} | {model} | {size} | {sign}{run.hours:,.1f} | {sign}{run.actor_hours:,.1f}"
                f" | {run.busy:.0%} | {run.num_deaths} |"
            )


if __name__ == "__main__":
    main()
