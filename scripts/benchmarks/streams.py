"""Proteins that no cache has seen: each one once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice

import numpy as np

from scripts.benchmarks.workload import random_protein


def fresh(sequences: Sequence[str]) -> Iterator[str]:
    """The sequences, then rotations of them without end: the same lengths and residues, never the same twice."""
    seen = set()
    for turn in count():
        has_new = False
        for sequence in sequences:
            start = turn % len(sequence)
            rotated = sequence[start:] + sequence[:start]
            if rotated not in seen:
                seen.add(rotated)
                has_new = True
                yield rotated
        if not has_new:  # every rotation was there
            return


def fresh_of_length(length: int, seed: int) -> Iterator[str]:
    """Random proteins of one length, without end."""
    rng = np.random.default_rng(seed)
    while True:
        yield random_protein(length, rng)


def requests(stream: Iterator[str], size: int) -> Iterator[list[str]]:
    """The stream in lists of `size`; what is left over is left out."""
    while len(request := list(islice(stream, size))) == size:
        yield request
