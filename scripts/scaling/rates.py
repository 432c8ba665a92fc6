"""How fast devices are: what was measured, and for others an estimate from their peak."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models.catalogue import find
from models.untrained import untrained_config
from scripts.benchmarks.operations import count_operations
from scripts.benchmarks.workload import sample_lengths
from scripts.scaling.demand import MAX_LENGTH

CPU = "2 cores with AMX"
# Residues a second of the packed engine in bfloat16. Source: docs/benchmarks.md, "The engine and its peers"
MEASURED: Mapping[str, float] = {
    "esm2_t12_35M": 11_526,
    "esm2_t30_150M": 3_843,
    "esm2_t33_650M": 1_125,
    "prot_t5": 611,
}
# bfloat16 operations a second of dense products, as the vendor states them. Source: NVIDIA's data sheets of L4,
# A100 and H100 SXM; those of L4 and H100 give twice as much, for sparse products
PEAKS: Mapping[str, float] = {"L4": 121e12, "A100": 312e12, "H100": 989e12}
ESTIMATED_MODELS = ("esm2_t12_35M", "esm2_t30_150M", "esm2_t33_650M", "esm2_t36_3B", "prot_t5")
UNIREF50 = 65_000_000  # proteins; an assumption, as releases grow
UTILISATION = 0.3  # share of the peak that the models' useful operations reach; an assumption
NUM_SAMPLED = 20_000


@dataclass(frozen=True)
class Rate:
    """residues_per_s: of one device, on proteins with Swiss-Prot's lengths."""

    device: str
    model: str
    residues_per_s: float
    is_measured: bool


def mean_length() -> float:
    """Residues of a protein of Swiss-Prot's sample, none above the service's limit."""
    return float(_lengths().mean())


def operations_per_residue(model: str) -> float:
    """Useful operations, special tokens and attention included, on Swiss-Prot's lengths."""
    row, lengths = find(model), _lengths()
    return count_operations(row, untrained_config(row), lengths.tolist()) / float(lengths.sum())


def rates(utilisation: float = UTILISATION) -> list[Rate]:
    """Those that were measured, then estimates: peak x utilisation / operations per residue."""
    found = [Rate(CPU, model, rate, True) for model, rate in MEASURED.items()]
    operations = {model: operations_per_residue(model) for model in ESTIMATED_MODELS}
    for device, peak in PEAKS.items():
        for model, per_residue in operations.items():
            found.append(Rate(device, model, peak * utilisation / per_residue, False))
    return found


def _lengths() -> np.ndarray:
    return sample_lengths(NUM_SAMPLED, MAX_LENGTH, np.random.default_rng(0))
