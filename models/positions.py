"""What a token's place in its sequence does to attention: ESM-2's rotations, T5's bias.

Both keep tables that grow as sequences get longer, whichever thread asks. Shapes: H heads, K head width. Cosines
and logarithms are numpy's: torch asks MKL, whose first call in several threads was wrong by 1.5e-4 in one of about
eighty processes.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ROTARY_BASE = 10_000.0
TABLE_STEP = 1024  # positions by which a table grows
MATRIX_STEP = 256  # tokens by which the matrix of biases grows
MAX_MATRIX_NUMBERS = 64 * 1024 * 1024  # of the matrix that is kept: 1,448 tokens at ProtT5's 32 heads


class Rotary:
    """The angles by which queries and keys are rotated. Source: fair-esm, esm/rotary_embedding.py.

    cos, sin: (positions, K / 2) float32.
    """

    def __init__(self, head_dim: int, device: torch.device) -> None:
        steps = torch.arange(0, head_dim, 2).float() / head_dim
        self._inverse_frequencies = 1.0 / ROTARY_BASE**steps
        self.cos = self.sin = torch.empty(0, head_dim // 2, device=device)
        self._growing = threading.Lock()

    def reach(self, longest: int) -> tuple[Tensor, Tensor]:
        """`cos` and `sin`, ready for sequences of up to `longest` tokens."""
        with self._growing:
            if longest > len(self.cos):
                num_positions = TABLE_STEP * math.ceil(longest / TABLE_STEP)
                device = self.cos.device
                angles = torch.outer(torch.arange(num_positions).float(), self._inverse_frequencies).numpy()
                self.cos, self.sin = (torch.from_numpy(f(angles)).to(device) for f in (np.cos, np.sin))
            return self.cos, self.sin


@dataclass(frozen=True)
class Buckets:
    """A learned bias for each head and bucket of distances.

    weights: (num_buckets, H) float32. The last bucket of each sign holds distances of max_distance and more.
    """

    weights: Tensor
    max_distance: int


class PositionBias:
    """T5's relative position bias: one number per head and distance, and the matrix that they make.

    by_distance: (H, 2 * longest - 1) float32; entry d + longest - 1 is that of a key d tokens behind its query.
    """

    def __init__(self, buckets: Buckets, dtype: torch.dtype) -> None:
        self._buckets = buckets
        self._dtype = dtype
        num_heads = buckets.weights.shape[1]
        self.longest = 0
        self.by_distance = buckets.weights.new_empty(num_heads, 0)
        self._matrix = buckets.weights.new_empty(num_heads, 0, 0, dtype=dtype)
        self._growing = threading.Lock()

    def reach(self, longest: int) -> tuple[Tensor, int]:
        """`by_distance` and the `longest` that it is for, ready for sequences of up to `longest` tokens."""
        with self._growing:
            if longest > self.longest:
                self.longest = TABLE_STEP * math.ceil(longest / TABLE_STEP)
                weights = self._buckets.weights
                distances = torch.arange(1 - self.longest, self.longest, device=weights.device)
                index = relative_position_bucket(distances, len(weights), self._buckets.max_distance)
                self.by_distance = weights[index].T.contiguous()
            return self.by_distance, self.longest

    def block(self, start: int, end: int, length: int) -> Tensor:
        """(H, end - start, length): the bias of queries start..end over the keys of their sequence.

        It depends on the distance alone, so the matrix of a shorter sequence is the upper left corner of one that
        is kept. For sequences longer than that one a block is made when it is attended.
        """
        num_heads = len(self.by_distance)
        if num_heads * length * length > MAX_MATRIX_NUMBERS:
            return self._make(start, end, length)
        if length > self._matrix.shape[1]:
            side = MATRIX_STEP * math.ceil(length / MATRIX_STEP)
            side = min(self.longest, side, math.isqrt(MAX_MATRIX_NUMBERS // num_heads))
            self._matrix = self._make(0, side, side)
        return self._matrix[:, start:end, :length]

    def _make(self, start: int, end: int, length: int) -> Tensor:
        # Row q is the run of `length` distances from -q on: windows of the flat table, last first
        runs = self.by_distance[:, self.longest - end : self.longest - 1 - start + length].to(self._dtype)
        return runs.unfold(1, length, 1).flip(1)


def relative_position_bucket(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket of a signed distance (key minus query), for an encoder: half the buckets for each sign.

    Source: transformers T5Attention._relative_position_bucket with bidirectional=True.
    """
    half = num_buckets // 2
    exact = half // 2
    magnitude = distance.abs()
    octaves = torch.from_numpy(np.log((magnitude.clamp(min=1).float() / exact).cpu().numpy())).to(distance.device)
    steps = (octaves / math.log(max_distance / exact) * (half - exact)).long()
    logarithmic = exact + steps.clamp(max=half - 1 - exact)
    return torch.where(magnitude < exact, magnitude, logarithmic) + half * (distance > 0)
