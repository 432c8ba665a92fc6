"""Cutting a list of sequences into batches by cost. No torch here: the gateway plans its windows with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def cost(length: int, dim: int) -> int:
    """Cost of one sequence, in tokens' worth of arithmetic.

    In ESM-2 a token costs 24 * dim^2 operations a layer in the linear layers (four products of dim x dim for
    attention, two of dim x 4 dim behind it) and 4 * dim * length in attention, so the squared term weighs
    length / (6 dim) against the linear one. ProtT5's layers are wider, so its long sequences are overrated.
    """
    return length + length * length // (6 * dim)


def plan(costs: Sequence[int], budget: int) -> Iterator[range]:
    """Consecutive ranges of items whose costs sum to at most `budget`.

    An item that is dearer than the whole budget gets a range of its own: it is never dropped or split.
    """
    start, spent = 0, 0
    for index, item in enumerate(costs):
        if index > start and spent + item > budget:
            yield range(start, index)
            start, spent = index, 0
        spent += item
    if start < len(costs):
        yield range(start, len(costs))
