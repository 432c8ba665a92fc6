"""The packed engine against its peers: same weights, same sequences, one run, interleaved, medians."""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.backends.choice import DTYPES
from models.configs import read_config
from scripts.benchmarks.contenders import Contender, Task, find_task
from scripts.benchmarks.cosines import cosine
from scripts.benchmarks.entries import Entry, Ours, choose_entries, peak_bytes, start
from scripts.benchmarks.machine import prepare
from scripts.benchmarks.memory import in_fresh_process, release_freed_memory
from scripts.benchmarks.operations import count_operations, matrix_peak
from scripts.benchmarks.packed import Packed
from scripts.benchmarks.peers import Peers, known_peers
from scripts.benchmarks.race import Race, explain
from scripts.benchmarks.reports import markdown, write_line
from scripts.benchmarks.workload import load


@dataclass(frozen=True)
class Result:
    """One contender: medians, the least cosine of its vectors to the engine's, peak memory of a first run.

    memory_mb: above the weights; None where it was not measured.
    """

    residues_per_s: float
    gflops: float
    least_cosine: float
    memory_mb: float | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="esm2_t12_35M", help="in the model store; see scripts.import_model")
    parser.add_argument("--fasta", type=Path, help="default: a seeded sample with Swiss-Prot's distribution")
    parser.add_argument("--num", type=int, default=48, help="sequences (default: 48)")
    parser.add_argument("--max-length", type=int, default=5000, help="longer ones are left out (default: 5000)")
    parser.add_argument("--compare", default="", help="peers, comma-separated; `all` for all that run here")
    parser.add_argument("--backends", default="native", help="`native`, `torch` or both, comma-separated")
    parser.add_argument("--precision", default="auto", choices=["auto", *DTYPES], help="of the engine")
    parser.add_argument("--batch-tokens", type=int, help="default: what suits the device")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory: a run more of each")
    parser.add_argument("--json", type=Path, help="write the JSON line there too")


def run(options: argparse.Namespace) -> None:
    prepare()
    task = find_task(options.model, options.precision, options.batch_tokens)
    entries = choose_entries(_split(options.backends), _split(options.compare), task)
    sequences = load(options.fasta, options.num, options.max_length, options.seed)
    lengths = [len(sequence) for sequence in sequences]
    span = f"{min(lengths)} to {max(lengths)} residues"
    print(f"{task.model.name}, {len(sequences)} sequences of {span}, {task.device}")

    race = Race()
    contenders = _start(entries, task, race)
    engines = {name: ours.describe() for name, ours in contenders.items() if isinstance(ours, Packed)}
    peak = functools.partial(matrix_peak, task.model, task.device, DTYPES[engines["packed"]["precision"]])
    race.run(contenders, sequences, task.device, options.rounds, peak)
    contenders.clear()
    release_freed_memory()  # the processes to come need the room

    best = _choose_best(task, race)
    results = _results(entries, task, sequences, race, best, with_memory=not options.no_memory)
    peak_gflops = statistics.median(race.peaks) / 1e9
    _print(results, best, peak_gflops, engines["packed"]["precision"], task)
    for name, reason in race.failures.items():
        print(f"{name}: {reason}")
    figures = {
        **_figures(results, best, peak_gflops),
        **engines["packed"],
        "engines": engines,
        "failures": race.failures,
        "sequences": options.fasta.name if options.fasta else f"sample of seed {options.seed}",
        "num_sequences": len(sequences),
        "num_residues": sum(lengths),
        "rounds": options.rounds,
    }
    write_line(figures, task, options.json)


def _split(names: str) -> list[str]:
    return [name for name in names.split(",") if name]


def _start(entries: Mapping[str, Entry], task: Task, race: Race) -> dict[str, Contender]:
    peers = Peers(task)
    contenders: dict[str, Contender] = {}
    for name, entry in entries.items():
        try:
            contenders[name] = start(entry, task, peers)
        except Exception as error:  # whatever a peer raises is of the peer
            if isinstance(entry, Ours):
                raise
            race.failures[name] = explain(error)
    return contenders


def _choose_best(task: Task, race: Race) -> dict[str, str]:
    """The fastest way of each peer that has several, by the peer's name."""
    best = {}
    for peer, ways in known_peers(task).items():
        if len(ways) > 1 and (ran := [name for name in ways if name in race.seconds]):
            best[peer] = min(ran, key=race.median_s)
    return best


def _results(
    entries: Mapping[str, Entry],
    task: Task,
    sequences: Sequence[str],
    race: Race,
    best: Mapping[str, str],
    with_memory: bool,
) -> dict[str, Result]:
    """Of all that came through; memory but of the ways that are not the best of their peer."""
    lengths = [len(sequence) for sequence in sequences]
    operations = count_operations(task.model, read_config(task.folder, task.model.family), lengths)
    beaten = {name for peer in best for name in known_peers(task)[peer]} - set(best.values())
    results = {}
    for name in race.seconds:
        memory_mb = None
        if with_memory and name not in beaten:
            try:
                memory_mb = in_fresh_process(peak_bytes, entries[name], task, sequences) / 1e6
            except Exception as error:
                race.failures[f"memory of {name}"] = explain(error)
        seconds = race.median_s(name)
        results[name] = Result(
            residues_per_s=sum(lengths) / seconds,
            gflops=operations / seconds / 1e9,
            least_cosine=min(map(cosine, race.outputs["packed"], race.outputs[name])),
            memory_mb=memory_mb,
        )
    return results


def _print(
    results: Mapping[str, Result], best: Mapping[str, str], peak_gflops: float, precision: str, task: Task
) -> None:
    ours = results["packed"]
    header = [task.model.name, "residues/s", "GFLOP/s", "of the peak", "packed is", "least cosine", "memory, MB"]
    rows = [
        [
            f"{name} (best)" if name in best.values() else name,
            f"{result.residues_per_s:,.0f}",
            f"{result.gflops:,.0f}",
            f"{result.gflops / peak_gflops:.1%}",
            "" if name == "packed" else f"{ours.residues_per_s / result.residues_per_s:.2f} x",
            "" if name == "packed" else f"{result.least_cosine:.6f}",
            "" if result.memory_mb is None else f"{result.memory_mb:,.0f}",
        ]
        for name, result in results.items()
    ]
    rows.append([f"the peak: torch's {precision} product", "", f"{peak_gflops:,.0f}", "100.0%", "", "", ""])
    print(f"\n{markdown(header, rows)}\n")


def _figures(results: Mapping[str, Result], best: Mapping[str, str], peak_gflops: float) -> dict[str, Any]:
    """The figures of the JSON line; `peers` are others' ways, `backends` ours on another backend."""
    ours = results["packed"]
    rates = {name: round(result.residues_per_s, 1) for name, result in results.items() if name != "packed"}
    peers = {name: rate for name, rate in rates.items() if not name.startswith("packed")}
    return {
        "residues_per_s": round(ours.residues_per_s, 1),
        "gflops": round(ours.gflops, 1),
        "peak_gflops": round(peak_gflops, 1),
        "peak_share": round(ours.gflops / peak_gflops, 4),
        "peers": peers | {peer: peers[name] for peer, name in best.items()},
        "backends": {name: rate for name, rate in rates.items() if name.startswith("packed")},
        "memory_mb": {name: round(r.memory_mb, 1) for name, r in results.items() if r.memory_mb is not None},
        "least_cosine": {name: round(r.least_cosine, 7) for name, r in results.items() if name != "packed"},
    }
