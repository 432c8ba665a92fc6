"""Measures what the project claims, beside its peers, in one run.

    python -m scripts.benchmark engine --model esm2_t12_35M --fasta proteins.fasta --compare all

Figures of one run can be compared with each other; machines differ, and shared ones differ from hour to hour.
"""

from __future__ import annotations

import argparse

from scripts.benchmarks import engine

SUBJECTS = {"engine": engine}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="subject", required=True)
    for name, subject in SUBJECTS.items():
        subject.add_arguments(commands.add_parser(name, help=(subject.__doc__ or "").splitlines()[0]))
    options = parser.parse_args()
    SUBJECTS[options.subject].run(options)


if __name__ == "__main__":
    main()
