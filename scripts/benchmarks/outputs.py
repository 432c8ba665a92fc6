"""Writing embeddings as npz: the service's writer beside numpy's own; with --memory, what large replies take."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from models.guard import EmbeddingError
from scripts.benchmarks import null_engine
from scripts.benchmarks.contenders import find_task
from scripts.benchmarks.footprint import memory_table
from scripts.benchmarks.large_replies import Sizes, measure
from scripts.benchmarks.machine import loading, prepare
from scripts.benchmarks.packed import Packed
from scripts.benchmarks.reports import markdown, write_line
from scripts.benchmarks.services import add_arguments as add_service_arguments
from scripts.benchmarks.services import serving
from scripts.benchmarks.workload import load
from serving.outputs import NpzWriter

Arrays = Sequence[np.ndarray]


@dataclass(frozen=True)
class Written:
    """mb_per_s: of the arrays' bytes, median. size_ratio: of the file to the arrays."""

    mb_per_s: float
    size_ratio: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_service_arguments(parser)
    parser.add_argument("--num", type=int, default=24, help="proteins that are embedded (default: 24)")
    parser.add_argument("--max-length", type=int, default=1000, help="longer ones are left out (default: 1000)")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each writer (default: 3)")
    parser.add_argument("--memory", action="store_true", help="also large replies of a service without arithmetic")
    parser.add_argument("--memory-model", default="esm2_t33_650M", help="whose width they have")
    parser.add_argument("--memory-num", type=int, default=100, help="proteins of a large request (default: 100)")
    parser.add_argument("--memory-length", type=int, default=5000, help="residues of each (default: 5000)")


def run(options: argparse.Namespace) -> None:
    prepare()
    task = find_task(options.model)
    with loading():
        packed = Packed(task)
    found = packed.residues(load(options.fasta, options.num, options.max_length, options.seed))
    arrays = [array for array in found if not isinstance(array, EmbeddingError)]
    written = {
        dtype: race([array.astype(dtype) for array in arrays], options.rounds) for dtype in ("float16", "float32")
    }
    _print(written, options.model)
    figures = {
        "writers": {dtype: {name: asdict(one) for name, one in by.items()} for dtype, by in written.items()},
        "num_sequences": len(arrays),
        "num_residues": sum(map(len, arrays)),
        "rounds": options.rounds,
    }
    if options.memory:
        figures["memory"] = large_replies(options)
    write_line(figures, task, options.json)


def race(arrays: Arrays, rounds: int) -> dict[str, Written]:
    """Every writer in every round, after an untimed one."""
    size = sum(array.nbytes for array in arrays)
    seconds: dict[str, list[float]] = {name: [] for name in WRITERS}
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="pes-outputs-") as folder:
        for _ in range(1 + rounds):
            for name, write in WRITERS.items():
                path = Path(folder) / "embeddings.npz"
                started = time.perf_counter()
                write(path, arrays)
                seconds[name].append(time.perf_counter() - started)
                ratios[name] = path.stat().st_size / size
                path.unlink()
    return {
        name: Written(round(size / 1e6 / statistics.median(taken[1:]), 1), round(ratios[name], 4))
        for name, taken in seconds.items()
    }


def _write_ours(path: Path, arrays: Arrays) -> None:
    writer = NpzWriter(path)
    for index, array in enumerate(arrays):
        writer.add(index, array)
    writer.finish([f"sequence_{index}" for index in range(len(arrays))], {})


def _named(arrays: Arrays) -> dict[str, np.ndarray]:
    return {f"embedding_{index}": array for index, array in enumerate(arrays)}


WRITERS: Mapping[str, Callable[[Path, Arrays], None]] = {
    "NpzWriter": _write_ours,
    "np.savez_compressed": lambda path, arrays: np.savez_compressed(path, **_named(arrays)),  # type: ignore[arg-type]
    "np.savez": lambda path, arrays: np.savez(path, **_named(arrays)),  # type: ignore[arg-type]
}


def large_replies(options: argparse.Namespace) -> dict[str, object]:
    """Memory by form of the reply and role, printed and for the JSON line."""
    sizes = Sizes(options.memory_num, options.memory_length)
    options.model = find_task(options.memory_model).model.name
    figures: dict[str, object] = {"model": options.model, **asdict(sizes)}
    for form, is_npz in (("npz", True), ("summary", False)):
        with serving(options, target=null_engine.SERVICE) as served:  # a fresh one: freed memory is often kept
            reply = measure(served, sizes, is_npz, options.seed)
        print(f"{sizes.num} x {sizes.length} residues of {options.model}'s width as {form}: ", end="")
        print(f"{reply.seconds:.1f} s\n\n{memory_table(reply.growth)}\n")
        figures[form] = {
            "seconds": round(reply.seconds, 2),
            "growth": {role: asdict(growth) for role, growth in reply.growth.items()},
        }
    return figures


def _print(written: Mapping[str, Mapping[str, Written]], model: str) -> None:
    rows = [
        [f"{name}, {dtype}", f"{one.mb_per_s:,.0f}", f"{one.size_ratio:.1%}"]
        for dtype, by_name in written.items()
        for name, one in by_name.items()
    ]
    print(f"\n{markdown([f'{model}, per residue', 'MB/s', 'size'], rows)}\n")
