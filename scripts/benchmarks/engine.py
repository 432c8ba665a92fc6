"""The packed engine against its peers: same weights, same sequences, one run, interleaved, medians."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import torch
import torch.nn.functional as F
import transformers

from models.catalogue import Model, find
from models.configs import EncoderConfig, read_config
from models.engine import Engine, Item
from models.planning import plan
from models.runner import keep_freed_memory
from scripts.benchmarks.peers import BATCH_SIZES, Contender, Extract, Transformers
from scripts.benchmarks.workload import load
from serving.settings import Settings

PEAK_TOKENS = 4096
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Result:
    """Medians of one contender."""

    name: str
    seconds: float
    residues_per_s: float
    gflops: float
    least_cosine: float
    memory_mb: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="esm2_t12_35M", help="in the model store; see scripts.import_model")
    parser.add_argument("--fasta", type=Path, help="default: a seeded sample with Swiss-Prot's distribution")
    parser.add_argument("--num", type=int, default=48, help="sequences (default: 48)")
    parser.add_argument("--max-length", type=int, default=5000, help="longer ones are left out")
    parser.add_argument("--compare", default="", help="peers, comma-separated; `all` for all that run here")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--batch-tokens", type=int, default=None, help="default: what the service uses")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the JSON line there too")


def run(options: argparse.Namespace) -> None:
    transformers.logging.set_verbosity_error()
    keep_freed_memory()  # as a runner does; the peers have it too
    model = find(options.model)
    folder = Path(bentoml.models.get(model.store_name).path)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    sequences = load(options.fasta, options.num, options.max_length, options.seed)
    engine = Engine(folder, model, device, options.precision)
    budget = options.batch_tokens or Settings.model_fields["batch_tokens"].default
    contenders: dict[str, Contender] = {"packed": lambda s: run_engine(engine, s, budget)}
    contenders |= choose_peers(options.compare, folder, model, device)

    lengths = [len(sequence) for sequence in sequences]
    print(f"{model.name}, {len(sequences)} sequences of {min(lengths)} to {max(lengths)} residues, {device}")
    print(f"engine: {engine.choice.precision} ({engine.choice.precision_reason}); {engine.choice.backend_reason}; budget {budget}")
    times, peaks, outputs, memory = measure(contenders, sequences, model, device, engine.choice.precision, options.rounds)
    operations = count_operations(model, read_config(folder, model.family), lengths)
    results = {
        name: Result(
            name=name,
            seconds=(seconds := statistics.median(times[name])),
            residues_per_s=sum(lengths) / seconds,
            gflops=operations / seconds / 1e9,
            least_cosine=least_cosine(outputs["packed"], outputs[name]),
            memory_mb=memory[name] / 1e6,
        )
        for name in contenders
    }
    report(results, statistics.median(peaks), engine, model, options)


def choose_peers(wanted: str, folder: Path, model: Model, device: str) -> dict[str, Contender]:
    """The peers asked for. `transformers-bf16-best` is one contender for each batch size; the best one counts."""
    is_cuda, is_esm2 = device != "cpu", model.family == "esm2"
    known: dict[str, Callable[[], dict[str, Contender]]] = {
        "transformers-fp32": lambda: {
            "transformers-fp32": Transformers(folder, model, device, torch.float32).in_batches(8, False)
        },
        "transformers-bf16": lambda: {
            "transformers-bf16": Transformers(folder, model, device, torch.bfloat16).in_batches(8, False)
        },
        "transformers-bf16-best": lambda: _every_batch_size(Transformers(folder, model, device, torch.bfloat16)),
    }
    if is_esm2:
        known["extract"] = lambda: {"extract": Extract(folder, model, device)}
    if is_cuda and is_esm2:
        known["transformers-fa2"] = lambda: {
            "transformers-fa2": Transformers(
                folder, model, device, torch.bfloat16, attention="flash_attention_2"
            ).in_batches(8, True)
        }
    if is_cuda:
        known["torch-compile"] = lambda: {
            "torch-compile": Transformers(folder, model, device, torch.bfloat16, is_compiled=True).in_batches(
                8, True
            )
        }
    names = list(known) if wanted == "all" else [name for name in wanted.split(",") if name]
    contenders: dict[str, Contender] = {}
    for name in names:
        if name not in known:
            raise SystemExit(f"--compare: {name} is none of {', '.join(known)}")
        try:
            contenders |= known[name]()
        except ImportError as error:
            print(f"{name} does not install here: {error}")
    return contenders


def _every_batch_size(peer: Transformers) -> dict[str, Contender]:
    return {f"transformers-bf16-sorted-{size}": peer.in_batches(size, True) for size in BATCH_SIZES}


def run_engine(engine: Engine, sequences: Sequence[str], budget: int) -> list[np.ndarray]:
    """All sequences, longest first, in batches of the budget."""
    items = [Item(sequence, pooled=True, dtype="float32") for sequence in sequences]
    order = sorted(range(len(items)), key=lambda index: -len(sequences[index]))
    results: list[np.ndarray] = [np.empty(0)] * len(items)
    for batch in plan([engine.cost(items[index]) for index in order], budget):
        found = engine.embed([items[order[place]] for place in batch])
        for place, result in zip(batch, found, strict=True):
            if isinstance(result, Exception):
                raise result
            results[order[place]] = result
    return results


def measure(
    contenders: Mapping[str, Contender],
    sequences: Sequence[str],
    model: Model,
    device: str,
    precision: str,
    rounds: int,
) -> tuple[dict[str, list[float]], list[float], dict[str, list[np.ndarray]], dict[str, int]]:
    """Seconds of each contender and the matrix-product peak, round after round; one short run first."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    outputs: dict[str, list[np.ndarray]] = {}
    memory: dict[str, int] = {}
    peaks: list[float] = []
    for contender in contenders.values():
        contender(sorted(sequences, key=len)[:2])
    for _ in range(rounds):
        peaks.append(matrix_peak(model, device, _DTYPES[precision]))
        for name, contender in contenders.items():
            meter = MemoryMeter(device)
            started = time.perf_counter()
            outputs[name] = contender(sequences)
            times[name].append(time.perf_counter() - started)
            memory[name] = max(memory.get(name, 0), meter.peak_bytes())
    return times, peaks, outputs, memory


def matrix_peak(model: Model, device: str, dtype: torch.dtype) -> float:
    """Operations per second of the model's largest linear layer alone: the plain product, nothing around it."""
    x = torch.randn(PEAK_TOKENS, model.dim, device=device).to(dtype)
    weight = torch.randn(model.feed_forward_dim, model.dim, device=device).to(dtype)
    bias = torch.zeros(model.feed_forward_dim, device=device, dtype=dtype)
    seconds = []
    for _ in range(8):
        if device != "cpu":
            torch.cuda.synchronize()
        started = time.perf_counter()
        F.linear(x, weight, bias)
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * PEAK_TOKENS * model.dim * model.feed_forward_dim / statistics.median(seconds[1:])


class MemoryMeter:
    """Bytes above those in use when it was made, at their peak."""

    def __init__(self, device: str) -> None:
        self._is_cuda = device != "cpu"
        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is in use
            self._start = _status_bytes("VmRSS")

    def peak_bytes(self) -> int:
        peak = torch.cuda.max_memory_allocated() if self._is_cuda else _status_bytes("VmHWM")
        return peak - self._start


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def count_operations(model: Model, config: EncoderConfig, lengths: Sequence[int]) -> float:
    """Useful operations: 2 x weights of linear layers x tokens + 4 x layers x width x squared lengths."""
    inner = config.num_heads * config.head_dim
    projections = 3 if config.is_gated else 2
    weights = config.num_layers * config.dim * (4 * inner + projections * config.feed_forward_dim)
    tokens = [length + sum(model.num_specials) for length in lengths]
    return 2.0 * weights * sum(tokens) + 4.0 * config.num_layers * inner * sum(n * n for n in tokens)


def least_cosine(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """The least likeness of two contenders' vectors: that they did the same work."""
    return min(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(ours, theirs, strict=True))


def report(
    results: Mapping[str, Result], peak: float, engine: Engine, model: Model, options: argparse.Namespace
) -> None:
    """A table for people, then one JSON line."""
    ours = results["packed"]
    print(f"\n{'':30} {'residues/s':>11} {'GFLOP/s':>9} {'seconds':>8} {'packed is':>10} {'cosine':>9} {'MB':>7}")
    for result in results.values():
        ratio = f"{ours.residues_per_s / result.residues_per_s:.2f} x"
        print(
            f"{result.name:30} {result.residues_per_s:11,.0f} {result.gflops:9,.0f} {result.seconds:8.2f} "
            f"{ratio:>10} {result.least_cosine:9.6f} {result.memory_mb:7,.0f}"
        )
    print(f"{'plain ' + engine.choice.precision + ' product':30} {'':11} {peak / 1e9:9,.0f}")
    print(f"packed reaches {100 * ours.gflops * 1e9 / peak:.1f}% of the product's peak\n")
    peers = {name: result.residues_per_s for name, result in results.items() if name != "packed"}
    if best := {name: rate for name, rate in peers.items() if name.startswith("transformers-bf16-sorted")}:
        peers["transformers-bf16-best"] = max(best.values())
    line: dict[str, Any] = {
        "model": model.name,
        "residues_per_s": round(ours.residues_per_s, 1),
        "gflops": round(ours.gflops, 1),
        "peak_gflops": round(peak / 1e9, 1),
        "peak_share": round(ours.gflops * 1e9 / peak, 4),
        "memory_mb": round(ours.memory_mb, 1),
        "peers": {name: round(rate, 1) for name, rate in peers.items()},
        "precision": engine.choice.precision,
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else platform.processor() or "cpu",
        "num_threads": torch.get_num_threads(),
        "seed": options.seed,
        "commit": _commit(),
        "torch": torch.__version__,
    }
    text = json.dumps(line)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return found.stdout.strip() or "unknown"
