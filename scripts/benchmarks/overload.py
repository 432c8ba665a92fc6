"""More work than the service can do: who is answered what, how much is still done, and what memory it takes."""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from scripts.benchmarks.clients import NO_REPLY, Answer, Load, connecting
from scripts.benchmarks.contenders import find_task
from scripts.benchmarks.footprint import Growth, memory_table, watching
from scripts.benchmarks.latencies import Latencies, summarise
from scripts.benchmarks.machine import prepare
from scripts.benchmarks.reports import markdown, write_line
from scripts.benchmarks.services import Served, serving
from scripts.benchmarks.services import add_arguments as add_service_arguments
from scripts.benchmarks.streams import fresh, requests
from scripts.benchmarks.workload import load

ALLOWED = (200, 429, 503, 504)
SAMPLE_MEMORY_EVERY_S = 1.0  # whoever samples takes time from the service


@dataclass(frozen=True)
class Outcome:
    """Of an open loop of `seconds`, beside the capacity that was measured before and after it.

    statuses: answers by status; `no reply` where the connection broke or the time was over. unexpected: those
    that are none of ALLOWED. throughput: residues a second that were answered with 200, until the last answer, as
    the capacity is counted.
    retry_after: values of that header, and how many answers had each.
    """

    capacity: float
    throughput: float
    num_sent: int
    statuses: Mapping[str, int]
    unexpected: Mapping[str, int]
    retry_after: Mapping[str, int]
    latencies: Latencies | None
    drained_s: float
    own_cores: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_service_arguments(parser)
    parser.add_argument("--factor", type=float, default=3, help="of the capacity that arrives (default: 3)")
    parser.add_argument("--seconds", type=float, default=60, help="of arrivals (default: 60)")
    parser.add_argument("--clients", type=int, default=16, help="at a time, for the capacity (default: 16)")
    parser.add_argument(
        "--capacity-seconds", type=float, default=20, help="for the capacity, before and after (default: 20)"
    )
    parser.add_argument("--per-request", type=int, default=1, help="proteins of a request (default: 1)")
    parser.add_argument("--timeout", type=float, default=120, help="seconds of a client's patience (default: 120)")
    parser.add_argument("--max-length", type=int, default=1000, help="longer ones are left out (default: 1000)")


def run(options: argparse.Namespace) -> None:
    prepare()
    task = find_task(options.model)
    sequences = load(options.fasta, 2000, options.max_length, options.seed)
    with serving(options) as served:
        served.clear_cache()
        outcome, growth = asyncio.run(_measure(served, sequences, options))
    _print(outcome, growth, options)
    figures = {
        **asdict(outcome),
        "of_capacity": round(outcome.throughput / outcome.capacity, 4),
        "memory": {role: asdict(one) for role, one in growth.items()},
        "factor": options.factor,
        "seconds": options.seconds,
        "per_request": options.per_request,
        "settings": options.set,
    }
    write_line(figures, task, options.json)


async def _measure(
    served: Served, sequences: Sequence[str], options: argparse.Namespace
) -> tuple[Outcome, Mapping[str, Growth]]:
    calls = (served.call(request) for request in requests(fresh(sequences), options.per_request))
    async with connecting(served.url, keeps_bodies=False, timeout_s=options.timeout) as clients:
        await clients.closed_loop([next(calls) for _ in range(4)], 4)
        before = await clients.closed_loop_for(calls, options.clients, options.capacity_seconds)
        rate = options.factor * len(before.require(200).answers) / before.seconds
        with watching(served.pid, SAMPLE_MEMORY_EVERY_S) as growth:
            done = await clients.open_loop(calls, rate, options.seconds, options.seed)
        after = await clients.closed_loop_for(calls, options.clients, options.capacity_seconds)
    num_residues = before.num_residues + after.require(200).num_residues
    return summarise_overload(done, options.seconds, num_residues / (before.seconds + after.seconds)), growth


def summarise_overload(done: Load, seconds: float, capacity: float) -> Outcome:
    def name(answer: Answer) -> str:
        return "no reply" if answer.status == NO_REPLY else str(answer.status)

    allowed = {str(status) for status in ALLOWED}
    statuses = Counter(name(answer) for answer in done.answers)
    good = [answer for answer in done.answers if answer.status == 200]
    latencies = [answer.seconds for answer in good]
    return Outcome(
        capacity=round(capacity, 1),
        throughput=round(sum(answer.call.num_residues for answer in good) / done.seconds, 1),
        num_sent=len(done.answers),
        statuses=dict(statuses),
        unexpected={status: num for status, num in statuses.items() if status not in allowed},
        retry_after=dict(Counter(a.retry_after for a in done.answers if a.retry_after is not None)),
        latencies=summarise(latencies) if latencies else None,
        drained_s=round(done.seconds - seconds, 2),
        own_cores=round(done.own_cores, 3),
    )


def _print(outcome: Outcome, growth: Mapping[str, Growth], options: argparse.Namespace) -> None:
    rows = [
        ["capacity, residues/s", f"{outcome.capacity:,.0f}"],
        [f"throughput at {options.factor:g} x capacity", f"{outcome.throughput:,.0f}"],
        ["of the capacity", f"{outcome.throughput / outcome.capacity:.1%}"],
        ["requests sent", f"{outcome.num_sent:,}"],
        *([f"answered {status}", f"{num:,}"] for status, num in sorted(outcome.statuses.items())),
        ["Retry-After, s", ", ".join(f"{v} ({n:,})" for v, n in sorted(outcome.retry_after.items())) or "none"],
        ["last answer after the last arrival, s", f"{outcome.drained_s:.1f}"],
        ["clients, cores", f"{outcome.own_cores:.2f}"],
    ]
    if outcome.latencies is not None:
        rows += [
            ["p50 of 200, ms", f"{outcome.latencies.p50_ms:,.0f}"],
            ["p99 of 200, ms", f"{outcome.latencies.p99_ms:,.0f}"],
        ]
    print(f"\n{markdown([options.model, ''], rows)}\n")
    if growth:
        print(f"{memory_table(growth)}\n")
    for status, num in outcome.unexpected.items():
        print(f"unexpected: {num} answers of {status}")
