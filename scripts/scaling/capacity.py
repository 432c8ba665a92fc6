"""Tables: time and price of many proteins, bytes of their embeddings, and what is full first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.catalogue import find
from scripts.scaling.rates import CPU, Rate

# Dollars an hour. Nobody's price list: figures to replace by one's own (--price DEVICE=DOLLARS)
PRICES: Mapping[str, float] = {CPU: 0.10, "L4": 0.80, "A100": 3.00, "H100": 4.00}
BYTES_PER_VALUE = 2  # float16, the default
# Bytes in Redis of one pooled embedding. Source: docs/operations.md, "Sizing" (`MEMORY USAGE` of 200 keys each)
REDIS_POOLED: Mapping[str, float] = {
    "esm2_t12_35M": 1_100,
    "esm2_t30_150M": 1_400,
    "prot_t5": 2_100,
    "esm2_t33_650M": 2_600,
    "esm2_t36_3B": 5_000,
}
# Bytes in Redis of a protein of 350 residues per residue. Source: the same table
REDIS_RESIDUES: Mapping[str, float] = {
    "esm2_t12_35M": 309_000,
    "esm2_t30_150M": 412_000,
    "prot_t5": 659_000,
    "esm2_t33_650M": 824_000,
    "esm2_t36_3B": 1_647_000,
}
REDIS_RESIDUES_LENGTH = 350
NPZ_SHARE = 0.921  # of the raw float16 values, per residue. Source: docs/benchmarks.md, "Npz files"
# Processor time of a miss besides arithmetic, both processes, ms: 20 less 10. Source: docs/benchmarks.md, "Texts"
MISS_MS = 10.0
# Per residue: 185 MB in 1.0 to 1.2 s of a gateway worker's processor time. Source: decision 0017
GATEWAY_BYTES_PER_S = 185e6 / 1.1


@dataclass(frozen=True)
class Cost:
    """Of a million proteins: hours of one device, and dollars. days: that one device needs for all."""

    rate: Rate
    hours_per_million: float
    price_per_million: float
    days: float
    price: float


def cost_of(rate: Rate, price_per_hour: float, mean_residues: float, num_proteins: float) -> Cost:
    """Arithmetic alone: no start-up, no idle time, nothing cached."""
    hours = 1e6 * mean_residues / rate.residues_per_s / 3600
    millions = num_proteins / 1e6
    return Cost(rate, hours, hours * price_per_hour, hours * millions / 24, hours * price_per_hour * millions)


@dataclass(frozen=True)
class Sizes:
    """Gigabytes (10^9 bytes) of a million proteins."""

    model: str
    pooled_raw: float
    pooled_redis: float
    residues_raw: float
    residues_npz: float
    residues_redis: float


def sizes_of(model: str, mean_residues: float) -> Sizes:
    """Redis per residue in proportion to the length."""
    row_bytes = find(model).dim * BYTES_PER_VALUE
    raw = row_bytes * mean_residues / 1e3
    return Sizes(
        model,
        pooled_raw=row_bytes / 1e3,
        pooled_redis=REDIS_POOLED[model] / 1e3,
        residues_raw=raw,
        residues_npz=NPZ_SHARE * raw,
        residues_redis=REDIS_RESIDUES[model] * mean_residues / REDIS_RESIDUES_LENGTH / 1e3,
    )


@dataclass(frozen=True)
class Load:
    """What one busy device asks of everything else.

    proteins_per_s: that it computes. miss_cores: cores that requests of one protein take besides arithmetic.
    workers: gateway workers that replies per residue take. network_mb_per_s: of them, raw. redis_hours: until
    pooled embeddings fill the memory; residues_redis_minutes: until those per residue do. disk_gb_per_hour:
    results of jobs per residue.
    """

    rate: Rate
    proteins_per_s: float
    miss_cores: float
    workers: float
    network_mb_per_s: float
    redis_hours: float
    residues_redis_minutes: float
    disk_gb_per_hour: float


def load_of(rate: Rate, mean_residues: float, redis_gb: float) -> Load:
    sizes = sizes_of(rate.model, mean_residues)
    proteins = rate.residues_per_s / mean_residues
    network = sizes.residues_raw * 1e3 * proteins  # bytes a second: gigabytes a million are kilobytes each
    redis_s = redis_gb * 1e6 / proteins  # seconds for each kilobyte that a protein takes
    return Load(
        rate,
        proteins_per_s=proteins,
        miss_cores=proteins * MISS_MS / 1e3,
        workers=network / GATEWAY_BYTES_PER_S,
        network_mb_per_s=network / 1e6,
        redis_hours=redis_s / sizes.pooled_redis / 3600,
        residues_redis_minutes=redis_s / sizes.residues_redis / 60,
        disk_gb_per_hour=sizes.residues_npz * proteins * 3600 / 1e6,
    )
