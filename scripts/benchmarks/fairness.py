"""Who waits for whom: a lone request right after a burst, and small requests beside large ones."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from models.planning import cost
from scripts.benchmarks.clients import Call, Clients, Load, connecting
from scripts.benchmarks.contenders import Task, find_task
from scripts.benchmarks.engine_process import EngineProcess
from scripts.benchmarks.latencies import Latencies, summarise
from scripts.benchmarks.machine import prepare
from scripts.benchmarks.race import explain
from scripts.benchmarks.reports import markdown, write_line
from scripts.benchmarks.services import add_arguments as add_service_arguments
from scripts.benchmarks.services import serving
from scripts.benchmarks.streams import fresh_of_length
from scripts.peers.launch import PEERS, choose_peers

SERVICE = "service"
NUM_AFTER = 10  # lone requests behind the first one after a burst
QUIET_S = 1.0  # in which nobody asks
HEAD_START_S = 1.0  # of a large request, so that the first small one meets it
NUM_BATCHES = 5  # timed, of which the median counts

Ask = Callable[[Sequence[str]], Call]


@dataclass(frozen=True)
class Sizes:
    """Of the requests, in sequences and residues. small: residues of a lone or small request."""

    small: int
    burst_singles: int
    burst_larges: int
    large_sequences: int
    burst_length: int
    beside_length: int


@dataclass(frozen=True)
class Fairness:
    """How long one protein's request takes.

    idle_s: median of one after another. quiet_s: behind a second in which nobody asks. first_after_s,
    most_after_s: of the first one after each burst, the median and the most. next_after_s: median of those behind
    it. beside: while a large request is under way.
    """

    idle_s: float
    quiet_s: float
    first_after_s: float
    most_after_s: float
    next_after_s: float
    beside: Latencies

    def rounded(self, batch_s: float) -> dict[str, Any]:
        return {
            "idle_ms": round(self.idle_s * 1e3, 2),
            "first_after_ms": round(self.first_after_s * 1e3, 2),
            "next_after_ms": round(self.next_after_s * 1e3, 2),
            "quiet_of_idle": round(self.quiet_s / self.idle_s, 3),
            "first_after_of_idle": round(self.first_after_s / self.idle_s, 3),
            "most_after_of_idle": round(self.most_after_s / self.idle_s, 3),
            "next_after_of_idle": round(self.next_after_s / self.idle_s, 3),
            "beside": self.beside.rounded(),
            "beside_p50_batches": round(self.beside.p50_ms / 1e3 / batch_s, 3),
            "beside_p99_batches": round(self.beside.p99_ms / 1e3 / batch_s, 3),
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_service_arguments(parser)
    parser.add_argument("--compare", default="", help=f"other services, comma-separated: {', '.join(PEERS)}")
    parser.add_argument("--lone", type=int, default=20, help="lone requests on an idle service (default: 20)")
    parser.add_argument("--bursts", type=int, default=5, help="bursts, of which the median counts (default: 5)")
    parser.add_argument("--beside", type=int, default=60, help="small requests beside large ones (default: 60)")
    parser.add_argument("--small", type=int, default=300, help="residues of a lone or small one (default: 300)")
    parser.add_argument("--burst-length", type=int, default=500, help="residues in the burst (default: 500)")
    parser.add_argument("--beside-length", type=int, default=1000, help="of a large one (default: 1000)")
    parser.add_argument("--large", type=int, default=100, help="sequences of a large request (default: 100)")


def run(options: argparse.Namespace) -> None:
    prepare()
    task, peers = find_task(options.model), choose_peers(options.compare)
    sizes = Sizes(options.small, 32, 3, options.large, options.burst_length, options.beside_length)
    with EngineProcess(task) as engine:
        batch_s, budget = time_of_batch(engine, task, options.beside_length, options.seed), engine.budget
    found: dict[str, Fairness] = {}
    failures: dict[str, str] = {}
    with serving(options) as served:
        found[SERVICE] = asyncio.run(measure(served.url, served.call, sizes, options))
    with tempfile.TemporaryDirectory(prefix="pes-peers-") as scratch:
        for name in peers:
            try:
                with PEERS[name](task.folder, Path(scratch)) as peer:
                    found[name] = asyncio.run(measure(peer.url, peer.call, sizes, options))
            except Exception as error:  # whatever a peer raises is of the peer
                failures[name] = explain(error)
    print(
        f"\nA full batch, {budget} tokens of {options.beside_length} residues each, in the engine alone: ", end=""
    )
    print(f"{batch_s * 1e3:,.0f} ms")
    _print(found, batch_s, options.model)
    for name, reason in failures.items():
        print(f"{name}: {reason}")
    figures = {
        "batch_ms": round(batch_s * 1e3, 2),
        "budget_tokens": budget,
        **{name: one.rounded(batch_s) for name, one in found.items()},
        "failures": failures,
        "sizes": asdict(sizes),
        "settings": options.set,
    }
    write_line(figures, task, options.json)


def time_of_batch(engine: EngineProcess, task: Task, length: int, seed: int) -> float:
    """Median seconds of a batch of the engine's budget, of proteins of one length."""
    num = max(1, engine.budget // cost(length + sum(task.model.num_specials), task.model.dim))
    proteins = fresh_of_length(length, seed)
    engine.embed(list(islice(proteins, num)))
    return statistics.median(engine.embed(list(islice(proteins, num)))[1] for _ in range(NUM_BATCHES))


async def measure(url: str, ask: Ask, sizes: Sizes, options: argparse.Namespace) -> Fairness:
    """Everything of one service, on sequences that it has not seen."""
    lone = fresh_of_length(sizes.small, options.seed + 1)
    singles = fresh_of_length(sizes.small, options.seed + 2)
    longs = fresh_of_length(sizes.burst_length, options.seed + 102)
    quiet: list[float] = []
    first: list[float] = []
    behind: list[float] = []
    async with connecting(url) as clients:
        await _one_by_one(clients, ask, lone, 3)
        idle = await _one_by_one(clients, ask, lone, options.lone)
        for _ in range(options.bursts):
            await asyncio.sleep(QUIET_S)
            quiet += await _one_by_one(clients, ask, lone, 1)
            await _burst(clients, ask, sizes, singles, longs)
            after = await _one_by_one(clients, ask, lone, 1 + NUM_AFTER)
            first.append(after[0])
            behind += after[1:]
        async with _large_ones(clients, ask, sizes, options.seed + 3):
            beside = await _one_by_one(clients, ask, lone, options.beside)
    return Fairness(
        statistics.median(idle),
        statistics.median(quiet),
        statistics.median(first),
        max(first),
        statistics.median(behind),
        summarise(beside),
    )


async def _one_by_one(clients: Clients, ask: Ask, proteins: Iterator[str], num: int) -> list[float]:
    """Seconds of requests of one protein each, one after another."""
    calls = [ask([protein]) for protein in islice(proteins, num)]
    done = (await clients.closed_loop(calls, 1)).require(200)
    return [answer.seconds for answer in done.answers]


async def _burst(clients: Clients, ask: Ask, sizes: Sizes, singles: Iterator[str], longs: Iterator[str]) -> None:
    """All at once: single ones by as many clients, and large ones; comes back when all are answered."""
    calls = [ask(list(islice(longs, sizes.large_sequences))) for _ in range(sizes.burst_larges)]
    calls += [ask([next(singles)]) for _ in range(sizes.burst_singles)]
    (await clients.closed_loop(calls, len(calls))).require(200)


@contextlib.asynccontextmanager
async def _large_ones(clients: Clients, ask: Ask, sizes: Sizes, seed: int) -> AsyncIterator[None]:
    """While this is open, one large request is under way: the next is sent as soon as one is answered."""
    proteins = fresh_of_length(sizes.beside_length, seed)

    async def keep() -> None:
        following = ask(list(islice(proteins, sizes.large_sequences)))
        while True:
            sent = asyncio.create_task(clients.send(following))
            following = ask(list(islice(proteins, sizes.large_sequences)))
            Load([await sent]).require(200)

    keeping = asyncio.create_task(keep())
    await asyncio.sleep(HEAD_START_S)
    yield
    if keeping.done():
        keeping.result()  # raises what ended it
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


def _print(found: dict[str, Fairness], batch_s: float, model: str) -> None:
    header = [
        model,
        "idle, ms",
        "behind a quiet second",
        "first after a burst",
        "at most",
        "next 10",
        "beside: p50, batches",
        "p99, batches",
    ]
    rows = [
        [
            name,
            f"{one.idle_s * 1e3:,.1f}",
            f"{one.quiet_s / one.idle_s:.2f} x",
            f"{one.first_after_s / one.idle_s:.2f} x",
            f"{one.most_after_s / one.idle_s:.2f} x",
            f"{one.next_after_s / one.idle_s:.2f} x",
            f"{one.beside.p50_ms / 1e3 / batch_s:.2f}",
            f"{one.beside.p99_ms / 1e3 / batch_s:.2f}",
        ]
        for name, one in found.items()
    ]
    print(f"\n{markdown(header, rows)}\n")
