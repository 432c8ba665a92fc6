"""How many devices a load needs. Rates come from docs/benchmarks.md or are marked as estimates.

    python -m scripts.scaling cost --price H100=2.50
    python -m scripts.scaling sizes
    python -m scripts.scaling limits --model esm2_t33_650M
    python -m scripts.scaling cluster --target 10 --plot day.png
    python -m scripts.scaling sweep
    python -m scripts.scaling jobs

docs/scaling.md says what the figures mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from scripts.scaling import runs, tables

SUBJECTS = {
    "cost": (tables.add_cost, tables.cost),
    "sizes": (tables.add_sizes, tables.sizes),
    "limits": (tables.add_limits, tables.limits),
    "cluster": (runs.add_cluster, runs.cluster),
    "sweep": (runs.add_cluster, runs.sweep),
    "jobs": (runs.add_jobs, runs.jobs),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="subject", required=True)
    for name, (add_arguments, run) in SUBJECTS.items():
        add_arguments(commands.add_parser(name, help=run.__doc__))
    options = parser.parse_args(arguments)
    SUBJECTS[options.subject][1](options)


if __name__ == "__main__":
    main()
