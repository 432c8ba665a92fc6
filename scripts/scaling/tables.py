"""Subjects cost, sizes and limits: arithmetic on measured rates and sizes, as tables."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from scripts.benchmarks.reports import markdown
from scripts.scaling.capacity import PRICES, REDIS_POOLED, cost_of, load_of, sizes_of
from scripts.scaling.rates import UNIREF50, UTILISATION, Rate, mean_length, rates


def add_cost(parser: argparse.ArgumentParser) -> None:
    _add_rates(parser)
    parser.add_argument("--proteins", type=float, default=UNIREF50, help="of the last two columns (default: 65e6)")
    parser.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="DEVICE=DOLLARS",
        help=f"an hour of a device; assumed: {', '.join(f'{name}={price:g}' for name, price in PRICES.items())}",
    )


def add_sizes(parser: argparse.ArgumentParser) -> None:
    _add_length(parser)


def add_limits(parser: argparse.ArgumentParser) -> None:
    _add_rates(parser)
    parser.add_argument("--redis-gb", type=float, default=2.0, help="memory of Redis, 10^9 bytes (default: 2)")


def cost(options: argparse.Namespace) -> None:
    """Time and price of many proteins, by device and model."""
    prices, residues = _prices(options.price), _residues(options)
    header = ["device", "model", "rate is", "residues/s", "hours/million", "$/million", "days of one", "$ for all"]
    rows = []
    for rate in _chosen(options):
        found = cost_of(rate, prices[rate.device], residues, options.proteins)
        figures = [f"{found.hours_per_million:,.1f}", f"{found.price_per_million:,.2f}", f"{found.days:,.1f}"]
        rows.append([*_name(rate), *figures, f"{found.price:,.0f}"])
    print(f"\n{options.proteins:,.0f} proteins of {residues:,.0f} residues in the mean:\n")
    print(f"{markdown(header, rows)}\n")


def sizes(options: argparse.Namespace) -> None:
    """Gigabytes of a million proteins."""
    residues = _residues(options)
    header = [
        "model",
        "pooled, raw",
        "pooled, Redis",
        "per residue, raw",
        "per residue, npz",
        "per residue, Redis",
    ]
    rows = []
    for model in REDIS_POOLED:
        found = sizes_of(model, residues)
        pooled = [f"{found.pooled_raw:.2f}", f"{found.pooled_redis:.1f}"]
        rows.append(
            [
                model,
                *pooled,
                f"{found.residues_raw:,.0f}",
                f"{found.residues_npz:,.0f}",
                f"{found.residues_redis:,.0f}",
            ]
        )
    print(f"\nGB for a million proteins of {residues:,.0f} residues in the mean, float16:\n")
    print(f"{markdown(header, rows)}\n")


def limits(options: argparse.Namespace) -> None:
    """What one busy device asks of gateway, network, Redis and disk."""
    residues = _residues(options)
    header = ["device", "model", "rate is", "residues/s", "proteins/s", "cores, misses of one"]
    header += ["gateway workers, per residue", "network, MB/s", "Redis full, pooled, h", "per residue, min"]
    header += ["disk, GB/h"]
    rows = []
    for rate in _chosen(options):
        found = load_of(rate, residues, options.redis_gb)
        figures = [found.proteins_per_s, found.miss_cores, found.workers, found.network_mb_per_s]
        figures += [found.redis_hours, found.residues_redis_minutes, found.disk_gb_per_hour]
        rows.append([*_name(rate), *map(_short, figures)])
    print(f"\nOne busy device, proteins of {residues:,.0f} residues, Redis of {options.redis_gb:g} GB:\n")
    print(f"{markdown(header, rows)}\n")


def _add_length(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mean-length", type=float, help="residues; default: of the sample with Swiss-Prot's lengths"
    )


def _add_rates(parser: argparse.ArgumentParser) -> None:
    _add_length(parser)
    parser.add_argument("--model", help="this one alone")
    parser.add_argument(
        "--utilisation",
        type=float,
        default=UTILISATION,
        help=f"of a GPU's peak, for estimates: an assumption (default: {UTILISATION})",
    )
    parser.add_argument(
        "--rate",
        action="append",
        default=[],
        metavar="DEVICE,MODEL=RESIDUES",
        help="residues a second, measured by `python -m scripts.benchmark engine`; takes the place of an estimate",
    )


def _residues(options: argparse.Namespace) -> float:
    return float(options.mean_length or mean_length())


def _chosen(options: argparse.Namespace) -> list[Rate]:
    found = {(rate.device, rate.model): rate for rate in rates(options.utilisation)}
    for given in options.rate:
        where, value = _split(given)
        device, _, model = where.partition(",")
        if (device, model) not in found:
            raise SystemExit(f"no row for {where!r}; known: {', '.join(map(','.join, found))}")
        found[device, model] = Rate(device, model, value, True)
    return [rate for rate in found.values() if options.model in (None, rate.model)]


def _prices(given: Sequence[str]) -> dict[str, float]:
    changed = dict(map(_split, given))
    if unknown := changed.keys() - PRICES.keys():
        raise SystemExit(f"no device {', '.join(sorted(unknown))}; known: {', '.join(PRICES)}")
    return {**PRICES, **changed}


def _split(given: str) -> tuple[str, float]:
    name, _, value = given.rpartition("=")
    try:
        return name, float(value)
    except ValueError:
        raise SystemExit(f"{given!r} is not NAME=NUMBER") from None


def _name(rate: Rate) -> list[str]:
    kind = "measured" if rate.is_measured else "estimated"
    return [rate.device, rate.model, kind, f"{rate.residues_per_s:,.0f}"]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
