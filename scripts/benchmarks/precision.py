"""How far 16-bit arithmetic is from 32-bit: the engine on each backend, and transformers, on the same weights."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from models.backends.choice import Precision
from models.backends.native import Native
from models.guard import EmbeddingError
from scripts.benchmarks.contenders import Task, find_task
from scripts.benchmarks.cosines import cosine, cosines
from scripts.benchmarks.machine import prepare
from scripts.benchmarks.memory import release_freed_memory
from scripts.benchmarks.outliers import choose_outliers, ratios, sums_before_norms, write_with_outliers
from scripts.benchmarks.packed import Packed
from scripts.benchmarks.peers import Transformers
from scripts.benchmarks.race import explain
from scripts.benchmarks.reports import markdown, write_line
from scripts.benchmarks.workload import load, sample
from scripts.local_service import ROOT

EXAMPLES = ROOT / "examples" / "proteins.fasta"
CALIBRATION = (4, 300)  # sequences, and residues of one at most, that tell how large a model's sums are
_WEIGHTS = ("as stored", "outlier channels")

Outputs = Sequence[np.ndarray | EmbeddingError]
Embed = Callable[[Sequence[str]], Outputs]  # (L, D) float32 of each sequence, or why not


@dataclass(frozen=True)
class Likeness:
    """Cosines to the engine in fp32: of residues, over those of all sequences, and of means.

    num_failed: sequences without a finite answer, which the cosines leave out.
    """

    least: float
    percentile_1: float
    median: float
    least_of_means: float
    num_failed: int

    def rounded(self) -> dict[str, float]:
        return {name: round(figure, 8) for name, figure in asdict(self).items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="esm2_t12_35M", help="in the model store; see scripts.import_model")
    parser.add_argument(
        "--num", type=int, default=12, help="sequences of a sample, beside examples/ (default: 12)"
    )
    parser.add_argument("--max-length", type=int, default=1000, help="of the sample (default: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the JSON line there too")


def run(options: argparse.Namespace) -> None:
    prepare()
    stored = find_task(options.model)
    sequences = sample(options.num, options.max_length, options.seed)
    sequences += load(EXAMPLES, num=1000, max_length=5000, seed=0)
    num_residues = sum(map(len, sequences))
    print(f"{stored.model.name}, {len(sequences)} sequences, {num_residues:,} residues, {stored.device}")

    found = {_WEIGHTS[0]: compare(stored, sequences)}
    with tempfile.TemporaryDirectory() as folder:
        uneven = dataclasses.replace(stored, folder=Path(folder))
        multiples = dict(zip(_WEIGHTS, give_outliers(stored, uneven, options.seed), strict=True))
        found[_WEIGHTS[1]] = compare(uneven, sequences)

    header = [f"{stored.model.name}: cosine to fp32", "weights", "residue: least", "1st percentile", "median"]
    rows = [
        [name, weights, *_cells(likeness)]
        for weights, likenesses in found.items()
        for name, likeness in likenesses.items()
    ]
    print(f"\n{markdown([*header, 'mean: least', 'failed'], rows)}\n")
    for weights, (least, largest) in multiples.items():
        print(f"{weights}: the outliers' channels are at {least:.1f} to {largest:.1f} times the others' median")
    print()
    figures = {
        "cosines": {
            weights: {
                name: likeness if isinstance(likeness, str) else likeness.rounded()
                for name, likeness in likenesses.items()
            }
            for weights, likenesses in found.items()
        },
        "outlier_ratios": multiples,
        "num_sequences": len(sequences),
        "num_residues": num_residues,
        "seed": options.seed,
    }
    write_line(figures, stored, options.json)


def give_outliers(source: Task, target: Task, seed: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Writes the target's checkpoint; `ratios` of the channels that it changed, in the source and then."""
    sequences = sample(*CALIBRATION, seed)
    before = sums_before_norms(source, sequences)
    outliers = choose_outliers(before, seed)
    write_with_outliers(source.folder, target.folder, outliers)
    after = sums_before_norms(target, sequences)
    return ratios(before, outliers.channels), ratios(after, outliers.channels)


def compare(task: Task, sequences: Sequence[str]) -> dict[str, Likeness | str]:
    """How like each arithmetic is to the engine in fp32, or why there is no answer."""
    exact = _engine(task, "fp32", "torch")(sequences)
    found: dict[str, Likeness | str] = {}
    for name, start in _ARITHMETICS.items():
        try:
            found[name] = measure(exact, start(task)(sequences))
        except Exception as error:  # fp16 on a device that has none, say
            found[name] = explain(error)
        release_freed_memory()
    return found


def measure(exact: Outputs, rounded: Outputs) -> Likeness:
    """Of two sets of (L, D) arrays."""
    residues: list[np.ndarray] = []
    means: list[float] = []
    for one, other in zip(exact, rounded, strict=True):
        if isinstance(one, EmbeddingError):
            raise one
        if not isinstance(other, EmbeddingError) and np.isfinite(other).all():
            residues.append(cosines(one, other))
            means.append(cosine(one.mean(0, dtype=np.float64), other.mean(0, dtype=np.float64)))
    if not means:
        raise ArithmeticError("no sequence has a finite answer")
    least, percentile, median = np.percentile(np.concatenate(residues), [0, 1, 50]).tolist()
    return Likeness(least, percentile, median, min(means), len(exact) - len(means))


def _engine(task: Task, precision: Precision, backend: str) -> Embed:
    packed = Packed(dataclasses.replace(task, precision=precision), backend)
    if backend == "native" and not isinstance(packed.engine.choice.backend, Native):
        raise ArithmeticError(f"no kernels of our own here ({packed.engine.choice.backend_reason})")
    return packed.residues


_ARITHMETICS: Mapping[str, Callable[[Task], Embed]] = {
    "engine, bf16, own kernels": lambda task: _engine(task, "bf16", "native"),
    "engine, bf16, torch": lambda task: _engine(task, "bf16", "torch"),
    "engine, fp16, torch": lambda task: _engine(task, "fp16", "torch"),
    "transformers, bf16": lambda task: Transformers(task, torch.bfloat16).residues,
    "transformers, fp16": lambda task: Transformers(task, torch.float16).residues,
}


def _cells(likeness: Likeness | str) -> list[str]:
    if isinstance(likeness, str):
        return [likeness, "", "", "", ""]
    figures = (likeness.least, likeness.percentile_1, likeness.median, likeness.least_of_means)
    return [*(f"{figure:.7f}" for figure in figures), str(likeness.num_failed)]
