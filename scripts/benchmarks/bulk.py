"""A bulk run on an embedded Ray beside the engine alone: throughput, equal values, memory."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pyarrow import parquet

from scripts.benchmarks.contenders import find_task
from scripts.benchmarks.engine_process import EngineProcess
from scripts.benchmarks.machine import prepare
from scripts.benchmarks.reports import markdown, write_line
from scripts.benchmarks.workload import load

SAMPLE_MEMORY_EVERY_S = 1.0
ACTOR = "ray::Writer"  # how Ray names the processes of bulk/pool.py's actors
ROLES = ("driver", "actors", "Ray")


@dataclass(frozen=True)
class Run:
    """summary: as the run wrote it. vectors: by id. peak_bytes: PSS by role, each at its peak."""

    summary: dict[str, Any]
    vectors: dict[str, np.ndarray]
    peak_bytes: dict[str, int]

    def residues_per_s(self, num_actors: int) -> float:
        """While actors were there: without the start of Ray, the loading of weights and the plot."""
        seconds: float = self.summary["actor_hours"] * 3600 / num_actors
        return float(self.summary["residues_of_this_run"]) / seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="esm2_t6_8M", help="in the model store; see scripts.import_model")
    parser.add_argument("--fasta", type=Path, help="default: a seeded sample with Swiss-Prot's distribution")
    parser.add_argument("--num", type=int, default=2000, help="proteins, the first of them (default: 2000)")
    parser.add_argument("--max-length", type=int, default=5000, help="longer ones are left out (default: 5000)")
    parser.add_argument("--actors", type=int, default=2, help="of one core each (default: 2)")
    parser.add_argument("--rounds", type=int, default=1, help="of a run and the engine, in turn (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the JSON line there too")


def run(options: argparse.Namespace) -> None:
    prepare()
    task = find_task(options.model)
    sequences = load(options.fasta, options.num, options.max_length, options.seed)
    num_residues = sum(map(len, sequences))
    ratios, runs, rates, differing = [], [], [], 0
    with EngineProcess(task) as engine:
        for _ in range(options.rounds):
            runs.append(_bulk(sequences, options.model, options.actors))
            vectors, seconds = engine.embed(sequences)
            rates.append(num_residues / seconds)
            ratios.append(runs[-1].residues_per_s(options.actors) / rates[-1])
            differing = max(differing, _num_differing(runs[-1].vectors, vectors))
    ours = [each.residues_per_s(options.actors) for each in runs]
    peak = {role: max(each.peak_bytes[role] for each in runs) for role in ROLES}
    rows = [
        ["engine alone, residues/s", f"{np.median(rates):,.0f}"],
        [f"{options.actors} actors, residues/s", f"{np.median(ours):,.0f}"],
        ["of the engine", f"{np.median(ratios):.1%}"],
        ["with Ray's start and end, residues/s", f"{np.median([r.summary['residues_per_s'] for r in runs]):,.0f}"],
        ["vectors that differ from the engine's", f"{differing:,}"],
        *([f"memory of {role} at its peak, MB", f"{size / 1e6:,.0f}"] for role, size in peak.items()),
    ]
    print(f"\n{markdown([options.model, f'{len(sequences):,} proteins, {num_residues:,} residues'], rows)}\n")
    figures = {
        "engine_residues_per_s": round(float(np.median(rates)), 1),
        "residues_per_s": round(float(np.median(ours)), 1),
        "of_engine": round(float(np.median(ratios)), 4),
        "num_differing": differing,
        "peak_bytes": peak,
        "summaries": [each.summary for each in runs],
        "num_sequences": len(sequences),
        "num_residues": num_residues,
        "actors": options.actors,
        "rounds": options.rounds,
    }
    write_line(figures, task, options.json)


def _bulk(sequences: Sequence[str], model: str, num_actors: int) -> Run:
    with tempfile.TemporaryDirectory(prefix="pes-benchmark-") as folder:
        source, output = Path(folder, "proteins.fasta"), Path(folder, "out")
        source.write_text("".join(f">{number}\n{sequence}\n" for number, sequence in enumerate(sequences)))
        command = [sys.executable, "-m", "scripts.embed_bulk", str(source), str(output), "--model", model]
        command += ["--dtype", "float32", "--actors", str(num_actors)]
        peak = dict.fromkeys(ROLES, 0)
        with open(f"{folder}/errors", "w+") as errors:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
            while process.poll() is None:
                for role, size in _memory(process.pid).items():
                    peak[role] = max(peak[role], size)
                time.sleep(SAMPLE_MEMORY_EVERY_S)
            errors.seek(0)
            if process.returncode:
                raise SystemExit(f"the bulk run failed:\n{errors.read()[-2000:]}")
        vectors = {
            row["id"]: np.array(row["embedding"], np.float32)
            for path in output.glob("shard-*.parquet")
            for row in parquet.read_table(path).to_pylist()
        }
        return Run(json.loads((output / "summary.json").read_text()), vectors, peak)


def _memory(pid: int) -> dict[str, int]:
    """PSS of the driver, of the actors that compute, and of whatever else Ray has started."""
    sizes = dict.fromkeys(ROLES, 0)
    try:
        family = psutil.Process(pid).children(recursive=True)
        sizes["driver"] = psutil.Process(pid).memory_full_info().pss
        for process in family:
            role = "actors" if ACTOR in " ".join(process.cmdline()) else "Ray"
            sizes[role] += process.memory_full_info().pss
    except psutil.Error:  # it has just ended
        pass
    return sizes


def _num_differing(found: dict[str, np.ndarray], expected: Sequence[np.ndarray]) -> int:
    assert len(found) == len(expected)
    return sum(not np.array_equal(found[str(number)], vector) for number, vector in enumerate(expected))
