"""Measures what the project claims, beside its peers, in one run.

    python -m scripts.benchmark engine --model esm2_t12_35M --fasta proteins.fasta --compare all
    python -m scripts.benchmark curves --model esm2_t12_35M --plot curves.png
    python -m scripts.benchmark precision --model esm2_t12_35M
    python -m scripts.benchmark http --fasta proteins.fasta --slice 0.4 --compare fastapi,bentoml
    python -m scripts.benchmark cache
    python -m scripts.benchmark outputs --memory
    python -m scripts.benchmark fairness --compare bentoml
    python -m scripts.benchmark scaling
    python -m scripts.benchmark overload --factor 3 --seconds 60
    python -m scripts.benchmark jobs --fasta proteins.fasta
    python -m scripts.benchmark bulk --fasta proteins.fasta
    python -m scripts.benchmark text --source sentence-transformers/all-MiniLM-L6-v2

Figures of one run can be compared with each other; machines differ, and shared ones differ from hour to hour.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence

from scripts.benchmarks import (
    bulk,
    cache,
    curves,
    engine,
    fairness,
    http,
    jobs,
    outputs,
    overload,
    precision,
    scaling,
    text,
)

SUBJECTS = {
    "engine": engine,
    "curves": curves,
    "precision": precision,
    "http": http,
    "cache": cache,
    "outputs": outputs,
    "fairness": fairness,
    "scaling": scaling,
    "overload": overload,
    "jobs": jobs,
    "bulk": bulk,
    "text": text,
}


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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: services that were started end too
    main()
