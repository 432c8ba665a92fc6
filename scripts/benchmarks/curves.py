"""The engine's throughput by sequence length and by budget, and the memory that its longest sequence needs."""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.engine import Item
from scripts.benchmarks.clock import timed
from scripts.benchmarks.contenders import find_task
from scripts.benchmarks.entries import Ours, peak_bytes
from scripts.benchmarks.machine import loading, prepare
from scripts.benchmarks.memory import in_fresh_process
from scripts.benchmarks.packed import USES_KERNELS, Packed
from scripts.benchmarks.reports import markdown, write_line
from scripts.benchmarks.workload import random_protein, sample

LENGTHS = (50, 100, 200, 300, 500, 1000, 2000, 5000)
REFERENCE_LENGTH = 500  # a residue of others is compared with one of these
LONGEST = 5000  # the service's default limit
MEMORY_RUNS = 3  # of it, as freed blocks do not fit the next run's at once
BUDGETS = (256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True)
class Point:
    """One place of a curve: what was run, and the median seconds that it took."""

    num_sequences: int
    num_residues: int
    seconds: float

    @property
    def residues_per_s(self) -> float:
        return self.num_residues / self.seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="esm2_t12_35M", help="in the model store; see scripts.import_model")
    parser.add_argument("--backend", default="native", choices=list(USES_KERNELS))
    parser.add_argument("--num", type=int, default=48, help="sequences of the sample for budgets (default: 48)")
    parser.add_argument("--max-length", type=int, default=LONGEST, help="of that sample (default: 5000)")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the JSON line there too")
    parser.add_argument("--plot", type=Path, help="draw the curves into this PNG; needs matplotlib")


def run(options: argparse.Namespace) -> None:
    if options.plot is not None:
        from scripts.benchmarks.plot import draw  # what is missing is missed now, not after minutes
    prepare()
    task = find_task(options.model)
    with loading():
        packed = Packed(task, options.backend)
    description = packed.describe()

    rng = np.random.default_rng(options.seed)
    packs = {length: equal_lengths(packed, length, rng) for length in LENGTHS}
    by_length = measure(packed, {n: (pack, packed.budget) for n, pack in packs.items()}, options.rounds)
    sequences = sample(options.num, options.max_length, options.seed)
    by_budget = measure(packed, {budget: (sequences, budget) for budget in BUDGETS}, options.rounds)
    memory_mb = in_fresh_process(peak_bytes, Ours(options.backend), task, packs[LONGEST], MEMORY_RUNS) / 1e6
    relative = relative_times(by_length)

    print(f"\nBy length, packs of equal ones, budget {packed.budget}:\n")
    header = [task.model.name, "sequences", "residues/s", f"time per residue, of {REFERENCE_LENGTH}'s"]
    rows = [
        [f"{n:,} residues", f"{point.num_sequences:,}", f"{point.residues_per_s:,.0f}", f"{relative[n]:.2f}"]
        for n, point in by_length.items()
    ]
    print(markdown(header, rows))
    print(f"\nBy budget, sample of {len(sequences)} sequences up to {options.max_length} residues:\n")
    rows = [[f"{budget:,}", f"{point.residues_per_s:,.0f}"] for budget, point in by_budget.items()]
    print(markdown(["tokens of a batch", "residues/s"], rows))
    above = f"{memory_mb:,.0f} MB above the weights at the peak of {MEMORY_RUNS} runs"
    print(f"\nOne sequence of {LONGEST:,} residues: {above}\n")
    if options.plot is not None:
        rates = [{n: point.residues_per_s for n, point in curve.items()} for curve in (by_length, by_budget)]
        draw(options.plot, f"{task.model.name}, {description['precision']}, {description['backend']}", *rates)
    figures = {
        "by_length": {
            n: {
                "num_sequences": point.num_sequences,
                "residues_per_s": round(point.residues_per_s, 1),
                "relative_time": round(relative[n], 3),
            }
            for n, point in by_length.items()
        },
        "by_budget": {budget: round(point.residues_per_s, 1) for budget, point in by_budget.items()},
        "longest": LONGEST,
        "longest_memory_mb": round(memory_mb, 1),
        **description,
        "num_sequences": len(sequences),
        "rounds": options.rounds,
        "seed": options.seed,
    }
    write_line(figures, task, options.json)


def equal_lengths(packed: Packed, length: int, rng: np.random.Generator) -> list[str]:
    """As many sequences of one length as the engine's budget takes; at least one."""
    cost = packed.engine.cost(Item("A" * length, pooled=True, dtype="float32"))
    return [random_protein(length, rng) for _ in range(max(1, packed.budget // cost))]


def measure(packed: Packed, loads: Mapping[int, tuple[list[str], int]], rounds: int) -> dict[int, Point]:
    """A point for each load of sequences and a budget; one untimed round, then rounds in turn."""
    runs: dict[int, Callable[[], object]] = {
        place: functools.partial(packed.embed, sequences, budget) for place, (sequences, budget) in loads.items()
    }
    device = str(packed.engine.device)
    seconds: dict[int, list[float]] = {place: [] for place in loads}
    for _ in range(rounds + 1):
        for place, run_once in runs.items():
            seconds[place].append(timed(run_once, device)[1])
    return {
        place: Point(len(sequences), sum(map(len, sequences)), statistics.median(seconds[place][1:]))
        for place, (sequences, _) in loads.items()
    }


def relative_times(by_length: Mapping[int, Point]) -> dict[int, float]:
    """Time per residue by length, as a multiple of that at REFERENCE_LENGTH."""
    reference = by_length[REFERENCE_LENGTH].residues_per_s
    return {length: reference / point.residues_per_s for length, point in by_length.items()}
