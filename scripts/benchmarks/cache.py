"""Answers from the cache: latency of one and of a hundred sequences, and requests a second of one worker."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, repeat

from scripts.benchmarks.clients import Call, connecting
from scripts.benchmarks.contenders import find_task
from scripts.benchmarks.latencies import Latencies, summarise
from scripts.benchmarks.machine import prepare
from scripts.benchmarks.reports import markdown, write_line
from scripts.benchmarks.services import Served, serving
from scripts.benchmarks.services import add_arguments as add_service_arguments
from scripts.benchmarks.streams import fresh
from scripts.benchmarks.workload import load

LIMITS_MS = {1: 4.0, 100: 15.0}  # of the median, by sequences of a request
LIMIT_REQUESTS_PER_S = 400.0
FORMS = {"summary": False, "npz": True}
WARM_UP_REQUESTS = 20
RATE_RUNS = 3


@dataclass(frozen=True)
class Rate:
    """Requests of one sequence by many clients at a time."""

    requests_per_s: float
    own_cores: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_service_arguments(parser)
    parser.add_argument("--requests", type=int, default=200, help="timed, of each kind (default: 200)")
    parser.add_argument("--clients", type=int, default=8, help="at a time, for the rate (default: 8)")
    parser.add_argument("--seconds", type=float, default=5, help="of each of three runs for the rate (default: 5)")
    parser.add_argument("--max-length", type=int, default=1000, help="longer ones are left out (default: 1000)")


def run(options: argparse.Namespace) -> None:
    prepare()
    task = find_task(options.model)
    largest = max(LIMITS_MS)
    found = load(options.fasta, largest, options.max_length, options.seed)
    sequences = list(islice(fresh(found), largest))
    with serving(options, {"GATEWAY_WORKERS": "1"}) as served:
        latencies, rates = asyncio.run(_measure(served, sequences, options))
    _print(latencies, rates, options)
    figures = {
        "latencies": {form: {n: one.rounded() for n, one in by.items()} for form, by in latencies.items()},
        "limits_ms": LIMITS_MS,
        "requests_per_s": {form: round(rate.requests_per_s, 1) for form, rate in rates.items()},
        "limit_requests_per_s": LIMIT_REQUESTS_PER_S,
        "own_cores": {form: round(rate.own_cores, 3) for form, rate in rates.items()},
        "clients": options.clients,
        "requests": options.requests,
        "settings": options.set,
    }
    write_line(figures, task, options.json)


async def _measure(
    served: Served, sequences: Sequence[str], options: argparse.Namespace
) -> tuple[dict[str, dict[int, Latencies]], dict[str, Rate]]:
    """Latencies by form and number of sequences, one after another on one connection; then rates by form."""
    async with connecting(served.url) as clients:
        for _ in range(2):  # the second finds what the first has left
            filled = (await clients.closed_loop([served.call(sequences)], 1)).require(200)
        misses = json.loads(filled.answers[0].body)["cache_stats"]["cache_misses"]
        if misses:
            raise RuntimeError(f"{misses} sequences are not in the cache after they were computed")

        async def latency(call: Call) -> Latencies:
            await clients.closed_loop([call] * WARM_UP_REQUESTS, 1)
            done = (await clients.closed_loop([call] * options.requests, 1)).require(200)
            return summarise([answer.seconds for answer in done.answers])

        async def rate(call: Call) -> Rate:
            await clients.closed_loop([call] * WARM_UP_REQUESTS, options.clients)
            runs = [
                (await clients.closed_loop_for(repeat(call), options.clients, options.seconds)).require(200)
                for _ in range(RATE_RUNS)
            ]
            return Rate(
                statistics.median(len(done.answers) / done.seconds for done in runs),
                statistics.median(done.own_cores for done in runs),
            )

        latencies = {
            form: {num: await latency(served.call(sequences[:num], is_npz=is_npz)) for num in LIMITS_MS}
            for form, is_npz in FORMS.items()
        }
        rates = {form: await rate(served.call(sequences[:1], is_npz=is_npz)) for form, is_npz in FORMS.items()}
    return latencies, rates


def _print(
    latencies: dict[str, dict[int, Latencies]], rates: dict[str, Rate], options: argparse.Namespace
) -> None:
    rows = [
        [f"{num:,} cached, {form}", f"{one.p50_ms:.2f} ms", f"{one.p99_ms:.2f} ms", f"{LIMITS_MS[num]:g} ms", ""]
        for form, by_num in latencies.items()
        for num, one in by_num.items()
    ]
    rows += [
        [
            f"1 cached, {form}, {options.clients} clients",
            *(f"{rate.requests_per_s:,.0f} /s", "", f"{LIMIT_REQUESTS_PER_S:g} /s", f"{rate.own_cores:.2f}"),
        ]
        for form, rate in rates.items()
    ]
    print(f"\n{markdown([options.model, 'median', 'p99', 'limit', 'clients, cores'], rows)}\n")
