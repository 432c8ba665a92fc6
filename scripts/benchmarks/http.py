"""The service over HTTP beside the engine alone and other services: many clients, nothing cached, in turn.

In turn: one after another in every round, or each with the engine in slices of time, which says more on a shared
machine (scripts/benchmarks/slices.py), but nothing of latencies.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from scripts.benchmarks.contenders import find_task
from scripts.benchmarks.cosines import cosine
from scripts.benchmarks.engine_process import EngineEnded, EngineProcess
from scripts.benchmarks.latencies import Latencies, summarise
from scripts.benchmarks.machine import prepare
from scripts.benchmarks.race import explain
from scripts.benchmarks.reports import markdown, write_line
from scripts.benchmarks.services import add_arguments as add_service_arguments
from scripts.benchmarks.services import serving
from scripts.benchmarks.slices import Side, in_slices
from scripts.benchmarks.streams import fresh, requests
from scripts.benchmarks.turns import Contender, Requests, Turn, engine_contender, peer_contender, service_contender
from scripts.benchmarks.workload import load
from scripts.peers.launch import PEERS, choose_peers

ENGINE, POOLED, RESIDUES = "engine alone", "service, pooled", "service, per residue"


@dataclass(frozen=True)
class Pair:
    """A contender's turn, and the engine's next to it or in slices with it."""

    own: Turn
    engine: Turn


@dataclass(frozen=True)
class Result:
    """Medians over rounds; latencies of all requests of all rounds; the least cosine to the engine's means."""

    residues_per_s: float
    of_engine: float
    latencies: Latencies | None
    own_cores: float
    least_cosine: float | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_service_arguments(parser)
    parser.add_argument("--clients", type=int, default=16, help="at a time (default: 16)")
    parser.add_argument("--per-request", type=int, default=8, help="proteins of a request (default: 8)")
    parser.add_argument("--requests", type=int, default=4, help="of each client in a round (default: 4)")
    parser.add_argument("--max-length", type=int, default=1000, help="longer ones are left out (default: 1000)")
    parser.add_argument("--rounds", type=int, default=3, help="timed turns of each (default: 3)")
    parser.add_argument(
        "--slice", type=float, default=0.0, help="seconds; 0: whole turns (default: 0; 0.4 is good on a busy CPU)"
    )
    parser.add_argument("--compare", default="", help=f"other services, comma-separated: {', '.join(PEERS)}")


def run(options: argparse.Namespace) -> None:
    prepare()
    if options.slice < 0:
        raise SystemExit(f"--slice: {options.slice:g} seconds are less than none")
    if options.slice and options.url:
        raise SystemExit("--slice: the service at --url cannot be stopped")
    task, peers = find_task(options.model), choose_peers(options.compare)
    num_requests = options.clients * options.requests
    found = load(options.fasta, num_requests * options.per_request, options.max_length, options.seed)
    work = list(islice(requests(fresh(found), options.per_request), num_requests))
    num_residues = sum(len(sequence) for request in work for sequence in request)
    print(f"{task.model.name}: {num_requests} requests of {options.per_request}, {options.clients} clients")

    failures: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        contenders: dict[str, Contender] = {ENGINE: engine_contender(stack.enter_context(EngineProcess(task)))}
        served = stack.enter_context(serving(options))
        contenders[POOLED] = service_contender(served, options.clients, is_pooled=True)
        contenders[RESIDUES] = service_contender(served, options.clients, is_pooled=False)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pes-peers-")))
        for name in peers:
            try:
                contenders[name] = peer_contender(
                    stack.enter_context(PEERS[name](task.folder, scratch)), options.clients
                )
            except Exception as error:  # whatever a peer raises is of the peer
                failures[name] = explain(error)
        num_hits = served.num_hits()
        pairs = race(contenders, work, options.rounds, failures, options.slice)
        num_hits = served.num_hits() - num_hits

    results = _results(pairs, num_residues)
    _print(results, task.model.name)
    for name, reason in failures.items():
        print(f"{name}: {reason}")
    figures = {
        **_figures(results),
        "cache_hits": num_hits,
        "failures": failures,
        "clients": options.clients,
        "per_request": options.per_request,
        "num_requests": num_requests,
        "num_residues": num_residues,
        "sequences": options.fasta.name if options.fasta else f"sample of seed {options.seed}",
        "rounds": options.rounds,
        "slice_s": options.slice,
        "settings": options.set,
    }
    write_line(figures, task, options.json)


def race(
    contenders: Mapping[str, Contender], work: Requests, rounds: int, failures: dict[str, str], slice_s: float = 0
) -> dict[str, list[Pair]]:
    """Every contender in every round, after an untimed one on the shortest requests. One that fails is out, with
    its reason in `failures`, but for ours."""
    warm_up = sorted(work, key=lambda request: sum(map(len, request)))[:2]
    pairs: dict[str, list[Pair]] = {}
    for requests_now in [warm_up, *[work] * rounds]:
        for name, pair in _round(contenders, requests_now, failures, slice_s):
            if requests_now is not warm_up:
                pairs.setdefault(name, []).append(pair)
    return {name: taken for name, taken in pairs.items() if name not in failures}


def _round(
    contenders: Mapping[str, Contender], work: Requests, failures: dict[str, str], slice_s: float
) -> Iterator[tuple[str, Pair]]:
    engine = contenders[ENGINE]
    beside = None if slice_s else engine.prepare(work)()
    for name, contender in contenders.items():
        if name == ENGINE or name in failures:
            continue
        try:
            if beside is None:
                pair = _sliced(contender, engine, work, slice_s)
            else:
                pair = Pair(contender.prepare(work)(), beside)
        except Exception as error:
            if name in (POOLED, RESIDUES) or isinstance(error, EngineEnded):
                raise
            failures[name] = explain(error)
            continue
        if name == POOLED:
            yield ENGINE, Pair(pair.engine, pair.engine)
        yield name, pair


def _sliced(contender: Contender, engine: Contender, work: Requests, slice_s: float) -> Pair:
    """Seconds are those in which it was let go on. A request's own, in which it was stopped too, are not told.

    The clients are in this process and go on in both slices, by `own_cores` of a core.
    """
    sides = []
    for one in (contender, engine):
        assert one.pid is not None, "who cannot be stopped takes whole turns"
        sides.append(Side(one.prepare(work), one.pid))
    own, beside = (
        replace(turn, seconds=seconds, latencies_s=[], own_cores=turn.own_cores * turn.seconds / seconds)
        for turn, seconds in in_slices(sides, slice_s)
    )
    return Pair(own, beside)


def _results(pairs: Mapping[str, Sequence[Pair]], num_residues: int) -> dict[str, Result]:
    """of_engine is the median of the ratios round by round: neighbours in time are compared."""
    read = pairs[ENGINE][-1].own.read
    assert read is not None
    expected = read()
    results = {}
    for name, taken in pairs.items():
        turns = [pair.own for pair in taken]
        latencies = [seconds for turn in turns for seconds in turn.latencies_s]
        read = turns[-1].read
        results[name] = Result(
            residues_per_s=num_residues / statistics.median(turn.seconds for turn in turns),
            of_engine=statistics.median(pair.engine.seconds / pair.own.seconds for pair in taken),
            latencies=summarise(latencies) if latencies else None,
            own_cores=statistics.median(turn.own_cores for turn in turns),
            least_cosine=None if read is None else min(map(cosine, expected, read())),
        )
    return results


def _print(results: Mapping[str, Result], model: str) -> None:
    ours = results[POOLED].of_engine
    header = [model, "residues/s", "of the engine", "the service is", "p50, ms", "p99, ms", "clients, cores"]
    rows = [
        [
            name,
            f"{result.residues_per_s:,.0f}",
            f"{result.of_engine:.1%}",
            "" if name in (POOLED, RESIDUES) else f"{ours / result.of_engine:.2f} x",
            "" if result.latencies is None else f"{result.latencies.p50_ms:,.0f}",
            "" if result.latencies is None else f"{result.latencies.p99_ms:,.0f}",
            "" if name == ENGINE else f"{result.own_cores:.3f}",
            "" if result.least_cosine is None or name == ENGINE else f"{result.least_cosine:.6f}",
        ]
        for name, result in results.items()
    ]
    print(f"\n{markdown([*header, 'least cosine'], rows)}\n")


def _figures(results: Mapping[str, Result]) -> dict[str, Any]:
    """`peers` are residues/s of others, `ratios` how many times as fast the service, pooled, is."""
    ours, peers = results[POOLED], [name for name in results if name in PEERS]
    rated = {name: round(results[name].residues_per_s, 1) for name in peers}
    return {
        "residues_per_s": round(ours.residues_per_s, 1),
        "engine_residues_per_s": round(results[ENGINE].residues_per_s, 1),
        "of_engine": round(ours.of_engine, 4),
        "per_residue_residues_per_s": round(results[RESIDUES].residues_per_s, 1),
        "per_residue_of_engine": round(results[RESIDUES].of_engine, 4),
        "peers": rated,
        "ratios": {name: round(ours.of_engine / results[name].of_engine, 3) for name in peers},
        "latencies": {name: r.latencies.rounded() for name, r in results.items() if r.latencies is not None},
        "least_cosine": {
            name: round(r.least_cosine, 7) for name, r in results.items() if r.least_cosine and name != ENGINE
        },
        "own_cores": {name: round(r.own_cores, 4) for name, r in results.items() if name != ENGINE},
    }
