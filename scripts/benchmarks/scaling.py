"""The batcher alone on simulated devices: how much faster several are, and what a lost one costs."""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from models.batcher import Batcher, Limits, Outcome
from models.catalogue import UnknownModel, find
from models.failures import DeviceLost
from models.planning import cost
from scripts.benchmarks.contenders import Task
from scripts.benchmarks.reports import markdown, write_line
from scripts.benchmarks.workload import load

NUMS_DEVICES = (1, 2, 4, 8)
LOST_AFTER_BATCHES = 5  # of the device that is lost
NUM_CALLERS = 2  # of a device, as of a GPU: the next batch is there when one is done

Device = Callable[[Sequence[str]], Sequence[int | Exception]]


@dataclass(frozen=True)
class Run:
    """speedup: over one device. efficiency: the ideal time, all devices busy all the time, as a share of the real.

    batches: of each device.
    """

    seconds: float
    speedup: float
    efficiency: float
    batches: list[int]


@dataclass(frozen=True)
class LossRun:
    """A run in which one device is lost. Of sequences: answered right, answered wrong, failed."""

    seconds: float
    num_answered: int
    num_wrong: int
    num_failed: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="esm2_t33_650M", help="whose costs are taken; needs no weights")
    parser.add_argument("--fasta", type=Path, help="default: a seeded sample with Swiss-Prot's distribution")
    parser.add_argument("--num", type=int, default=4000, help="sequences (default: 4000)")
    parser.add_argument("--per-request", type=int, default=8, help="sequences of a call (default: 8)")
    parser.add_argument("--max-length", type=int, default=5000, help="longer ones are left out (default: 5000)")
    parser.add_argument("--budget", type=int, default=4096, help="cost of a batch at most (default: 4096)")
    parser.add_argument("--rate", type=float, default=100_000, help="cost a device does in a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the JSON line there too")


def run(options: argparse.Namespace) -> None:
    try:
        model = find(options.model)
    except UnknownModel as error:
        raise SystemExit(str(error)) from None
    cost_of = functools.partial(_cost, dim=model.dim)
    found = load(options.fasta, options.num, options.max_length, options.seed)
    distinct = list(dict.fromkeys(found))  # equal ones are computed once
    calls = [
        distinct[start : start + options.per_request] for start in range(0, len(distinct), options.per_request)
    ]
    total = sum(cost_of(sequence) for call in calls for sequence in call)

    def devices(num: int) -> list[Device]:
        return [Simulated(cost_of, options.rate) for _ in range(num)]

    limits = Limits(budget=options.budget)

    gc.collect()
    gc.freeze()  # else Python looks at all of torch's objects once, 0.3 s, in whichever run that falls
    runs: dict[int, Run] = {}
    for num in NUMS_DEVICES:
        seconds, _, batches = asyncio.run(drain(devices(num), calls, cost_of, limits))
        first = next(iter(runs.values())).seconds if runs else seconds
        runs[num] = Run(seconds, first / seconds, total / options.rate / num / seconds, batches)
    most = max(NUMS_DEVICES)
    *others, last = devices(most)
    loss = count(*asyncio.run(drain([*others, Failing(last)], calls, cost_of, limits))[:2], calls)
    _print(runs, loss, most, total / options.rate, options)
    figures = {
        "devices": {num: asdict(one) for num, one in runs.items()},
        "loss": asdict(loss),
        "total_cost": total,
        "rate": options.rate,
        "budget": options.budget,
        "num_sequences": sum(map(len, calls)),
        "per_request": options.per_request,
        "sequences": options.fasta.name if options.fasta else f"sample of seed {options.seed}",
    }
    write_line(figures, Task(Path(), model, "cpu"), options.json)


def _cost(sequence: str, dim: int) -> int:
    return cost(len(sequence), dim)


class Simulated:
    """A device: computes one batch at a time, takes its time, and answers with the length of each sequence."""

    def __init__(self, cost_of: Callable[[str], int], rate: float) -> None:
        self._cost_of = cost_of
        self._rate = rate
        self._computing = threading.Lock()

    def __call__(self, batch: Sequence[str]) -> list[int]:
        seconds = sum(map(self._cost_of, batch)) / self._rate
        with self._computing:
            time.sleep(seconds)
        return [len(sequence) for sequence in batch]


class Failing:
    """A device that is lost in the middle of a batch, after so many that it did."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._num_batches = 0

    def __call__(self, batch: Sequence[str]) -> Sequence[int | Exception]:
        found = self._device(batch)
        self._num_batches += 1
        if self._num_batches > LOST_AFTER_BATCHES:
            raise DeviceLost("a simulated loss")
        return found


async def drain(
    devices: Sequence[Device], calls: Sequence[Sequence[str]], cost_of: Callable[[str], int], limits: Limits
) -> tuple[float, list[list[Outcome[int]]], list[int]]:
    """All calls at once: seconds until all are answered, what they got, batches of each device."""
    batcher: Batcher[str, int] = Batcher(devices, cost=cost_of, limits=limits, num_callers=NUM_CALLERS)
    started = time.perf_counter()
    outcomes = await asyncio.gather(*(batcher.run(call) for call in calls))
    seconds = time.perf_counter() - started
    batches = [device.num_batches for device in batcher.statistics.devices]
    await batcher.close()
    return seconds, outcomes, batches


def count(seconds: float, outcomes: Sequence[Sequence[Outcome[int]]], calls: Sequence[Sequence[str]]) -> LossRun:
    """Compares every outcome with the sequence that was asked for."""
    pairs = [
        (sequence, outcome.result)
        for call, answered in zip(calls, outcomes, strict=True)
        for sequence, outcome in zip(call, answered, strict=True)
    ]
    num_failed = sum(isinstance(result, Exception) for _, result in pairs)
    num_right = sum(result == len(sequence) for sequence, result in pairs)
    return LossRun(round(seconds, 3), num_right, len(pairs) - num_right - num_failed, num_failed)


def _print(runs: Mapping[int, Run], loss: LossRun, most: int, ideal_s: float, options: argparse.Namespace) -> None:
    header = ["devices", "seconds", "speed-up", "efficiency", "batches of each"]
    rows = [
        [
            str(num),
            f"{one.seconds:.2f}",
            f"{one.speedup:.2f} x",
            f"{one.efficiency:.1%}",
            f"{min(one.batches)} to {max(one.batches)}",
        ]
        for num, one in runs.items()
    ]
    print(f"\nBudget {options.budget}, {options.rate:,.0f} a second, ideally {ideal_s:.2f} s on one:\n")
    print(f"{markdown(header, rows)}\n")
    answered = f"{loss.num_answered:,} answered, {loss.num_wrong} wrong, {loss.num_failed} failed"
    print(f"{most} devices, one lost in its batch {LOST_AFTER_BATCHES + 1}: {loss.seconds:.2f} s, {answered}\n")
