"""The service over HTTP beside the engine alone and other services: many clients, nothing cached, in turn."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from scripts.benchmarks.contenders import find_task
from scripts.benchmarks.cosines import cosine
from scripts.benchmarks.engine_process import EngineProcess
from scripts.benchmarks.latencies import Latencies, summarise
from scripts.benchmarks.machine import prepare
from scripts.benchmarks.race import explain
from scripts.benchmarks.reports import markdown, write_line
from scripts.benchmarks.services import add_arguments as add_service_arguments
from scripts.benchmarks.services import serving
from scripts.benchmarks.streams import fresh, requests
from scripts.benchmarks.turns import Contender, Requests, Turn, engine_contender, peer_contender, service_contender
from scripts.benchmarks.workload import load
from scripts.peers.launch import PEERS, choose_peers

ENGINE, POOLED, RESIDUES = "engine alone", "service, pooled", "service, per residue"


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
    parser.add_argument("--compare", default="", help=f"other services, comma-separated: {', '.join(PEERS)}")


def run(options: argparse.Namespace) -> None:
    prepare()
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
        turns = race(contenders, work, options.rounds, failures)
        num_hits = served.num_hits() - num_hits

    results = _results(turns, num_residues)
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
        "settings": options.set,
    }
    write_line(figures, task, options.json)


def race(
    contenders: Mapping[str, Contender], work: Requests, rounds: int, failures: dict[str, str]
) -> dict[str, list[Turn]]:
    """Every contender in every round, after an untimed turn on the shortest requests. One that fails is out, with
    its reason in `failures`, but for ours."""
    warm_up = sorted(work, key=lambda request: sum(map(len, request)))[:2]
    turns: dict[str, list[Turn]] = {}
    for requests_now in [warm_up, *[work] * rounds]:
        for name, contender in contenders.items():
            if name in failures:
                continue
            try:
                turn = contender(requests_now)
            except Exception as error:
                if name in (ENGINE, POOLED, RESIDUES):
                    raise
                failures[name] = explain(error)
                turns.pop(name, None)
                continue
            if requests_now is not warm_up:
                turns.setdefault(name, []).append(turn)
    return turns


def _results(turns: Mapping[str, Sequence[Turn]], num_residues: int) -> dict[str, Result]:
    """of_engine is the median of the ratios round by round: neighbours in time are compared."""
    engine = turns[ENGINE]
    expected = engine[-1].vectors
    assert expected is not None
    results = {}
    for name, taken in turns.items():
        latencies = [seconds for turn in taken for seconds in turn.latencies_s]
        vectors = taken[-1].vectors
        results[name] = Result(
            residues_per_s=num_residues / statistics.median(turn.seconds for turn in taken),
            of_engine=statistics.median(e.seconds / t.seconds for e, t in zip(engine, taken, strict=True)),
            latencies=summarise(latencies) if latencies else None,
            own_cores=statistics.median(turn.own_cores for turn in taken),
            least_cosine=None if vectors is None else min(map(cosine, expected, vectors)),
        )
    return results


def _print(results: Mapping[str, Result], model: str) -> None:
    ours = results[POOLED].residues_per_s
    header = [model, "residues/s", "of the engine", "the service is", "p50, ms", "p99, ms", "clients, cores"]
    rows = [
        [
            name,
            f"{result.residues_per_s:,.0f}",
            f"{result.of_engine:.1%}",
            "" if name in (POOLED, RESIDUES) else f"{ours / result.residues_per_s:.2f} x",
            "" if result.latencies is None else f"{result.latencies.p50_ms:,.0f}",
            "" if result.latencies is None else f"{result.latencies.p99_ms:,.0f}",
            "" if result.latencies is None else f"{result.own_cores:.3f}",
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
        "ratios": {name: round(ours.residues_per_s / results[name].residues_per_s, 3) for name in peers},
        "latencies": {name: r.latencies.rounded() for name, r in results.items() if r.latencies is not None},
        "least_cosine": {
            name: round(r.least_cosine, 7) for name, r in results.items() if r.least_cosine and name != ENGINE
        },
        "own_cores": {name: round(r.own_cores, 4) for name, r in results.items() if name != ENGINE},
    }
