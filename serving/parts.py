"""What a runner is asked for: sequences, whole or in overlapping windows, in calls; and windows joined again."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from models.planning import cost, plan
from serving.sequences import Protein

CALL_TOKENS = 16_384  # cost of what is sent to a runner in one call
CALL_BYTES = 32_000_000  # of embeddings that a call brings back
OVERLAP_SHARE = 4  # neighbours share a quarter of a window at least, rounded down
MIN_WINDOW = 256  # residues: smaller ones are more calls than arithmetic, and embed little of what is around

Dtype = Literal["float16", "float32"]


@dataclass(frozen=True)
class Options:
    """What a request wants of a model.

    pooled: one vector a sequence, else one a residue. window: residues that are computed at once, where longer
    sequences are to be cut into overlapping windows; None: every sequence is computed whole.
    """

    pooled: bool = True
    dtype: Dtype = "float16"
    window: int | None = None


@dataclass(frozen=True)
class Part:
    """Of a sequence, what one call computes: all of it, or one window, whose residues are then wanted."""

    place: int
    span: slice
    is_whole: bool


@dataclass(frozen=True)
class Call:
    """Parts that a runner is asked for together, in the form in which it is to answer."""

    parts: list[Part]
    pooled: bool
    dtype: Dtype

    @property
    def form(self) -> dict[str, Any]:
        """As the runner is asked for it."""
        return {"pooled": self.pooled, "dtype": self.dtype}


def expected_bytes(proteins: Sequence[Protein], options: Options, dim: int) -> int:
    """Size of the embeddings of a request."""
    num_rows = len(proteins) if options.pooled else sum(len(protein.sequence) for protein in proteins)
    return num_rows * dim * np.dtype(options.dtype).itemsize


def cut(length: int, window: int | None) -> list[slice]:
    """Overlapping spans of `window` residues that cover a sequence; one where it is not longer than that.

    Neighbours share a quarter of a window at least, so that no residue stands near the edge of all its windows.
    The starts are spread evenly: the last window is no shorter than the others.
    """
    if length <= (window or sys.maxsize):
        return [slice(0, length)]
    assert window is not None
    stride = window - window // OVERLAP_SHARE
    num_gaps = -(-(length - window) // stride)
    starts = [index * (length - window) // num_gaps for index in range(num_gaps + 1)]
    return [slice(start, start + window) for start in starts]


def plan_calls(lengths: Mapping[int, int], dim: int, options: Options) -> Iterator[Call]:
    """Calls for sequences, by place, of so many residues; wholes and windows are never mixed."""
    parts = [
        Part(place, span, is_whole=len(spans) == 1)
        for place, length in lengths.items()
        for spans in [cut(length, options.window)]
        for span in spans
    ]
    wholes, windows = ([part for part in parts if part.is_whole == is_whole] for is_whole in (True, False))
    yield from _plan_alike(wholes, dim, options.pooled, options.dtype)
    yield from _plan_alike(windows, dim, False, "float32")


def _plan_alike(parts: list[Part], dim: int, pooled: bool, dtype: Dtype) -> Iterator[Call]:
    tokens = CALL_TOKENS if pooled else min(CALL_TOKENS, CALL_BYTES // (dim * np.dtype(dtype).itemsize))
    costs = [cost(part.span.stop - part.span.start, dim) for part in parts]
    for chosen in plan(costs, tokens):
        yield Call([parts[i] for i in chosen], pooled, dtype)


@dataclass
class _Sum:
    """Of a sequence's windows so far. counts: windows that each residue is in, (L, 1)."""

    counts: np.ndarray
    total: np.ndarray
    num_missing: int


class Joiner:
    """Makes one embedding of a sequence's windows. Where they overlap, it is their mean."""

    def __init__(self, dim: int, options: Options) -> None:
        self._dim, self._options = dim, options
        self._sums: dict[int, _Sum] = {}

    def add(self, part: Part, rows: np.ndarray, length: int) -> np.ndarray | None:
        """The window of a sequence of `length` residues, (L, D) float32.

        Returns:
            The sequence's embedding, (D,) if pooled, else (length, D), once this was its last window; else None.
        Raises:
            OverflowError: the values do not fit the options' dtype.
        """
        if part.place not in self._sums:
            self._sums[part.place] = self._begin(length)
        found = self._sums[part.place]
        shares = rows / found.counts[part.span]
        if self._options.pooled:
            found.total += shares.sum(0, dtype=np.float64) / length
        else:
            found.total[part.span] += shares
        found.num_missing -= 1
        if found.num_missing:
            return None
        del self._sums[part.place]
        with np.errstate(over="ignore"):
            embedding = found.total.astype(self._options.dtype)
        if not np.isfinite(embedding).all():
            raise OverflowError(f"the output does not fit {self._options.dtype}; ask for float32")
        return embedding

    def forget(self, part: Part) -> None:
        """The sequence has failed."""
        self._sums.pop(part.place, None)

    def _begin(self, length: int) -> _Sum:
        spans = cut(length, self._options.window)
        counts = np.zeros((length, 1), np.float32)
        for span in spans:
            counts[span] += 1
        pooled = self._options.pooled
        total = np.zeros(self._dim, np.float64) if pooled else np.zeros((length, self._dim), np.float32)
        return _Sum(counts, total, len(spans))
