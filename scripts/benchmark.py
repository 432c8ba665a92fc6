"""Measures what the project claims, beside its peers, in one run.

    python -m scripts.benchmark engine --model esm2_t12_35M --fasta proteins.fasta --compare all
    python -m scripts.benchmark curves --model esm2_t12_35M --plot curves.png
    python -m scripts.benchmark precision --model esm2_t12_35M

Figures of one run can be compared with each other; machines differ, and shared ones differ from hour to hour.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from scripts.benchmarks import curves, engine, precision

SUBJECTS = {"engine": engine, "curves": curves, "precision": precision}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="subject", required=True)
    for name, subject in SUBJECTS.items():
        subject.add_arguments(commands.add_parser(name, help=(subject.__doc__ or "").splitlines()[0]))
    options = parser.parse_args(arguments)
    SUBJECTS[options.subject].run(options)


if __name__ == "__main__":
    main()
