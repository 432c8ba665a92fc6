"""A batch as one flat tensor: sequences end to end, no padding anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.transfer import Transfer


@dataclass(frozen=True)
class Pack:
    """B sequences of T tokens together, special tokens included.

    tokens: (T,) int64. positions: (T,) int64, from 0 in each sequence. cu_seqlens: (B + 1,) int32 starts;
    the last entry is T. lengths: the same in host memory, so that nobody asks the device for them.
    """

    tokens: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    lengths: tuple[int, ...]

    @property
    def max_length(self) -> int:
        return max(self.lengths)

    def spans(self) -> list[tuple[int, int]]:
        """Start and end of each sequence in the flat tensor."""
        ends = np.cumsum(self.lengths).tolist()
        return list(zip([0, *ends[:-1]], ends, strict=True))


def pack(sequences: Sequence[np.ndarray], transfer: Transfer) -> Pack:
    """Tokenised sequences, each (L,) int64, as one Pack on the transfer's device."""
    lengths = tuple(len(tokens) for tokens in sequences)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    positions = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)
    return Pack(
        tokens=transfer.to_device(torch.from_numpy(np.concatenate(sequences))),
        positions=transfer.to_device(torch.from_numpy(positions)),
        cu_seqlens=transfer.to_device(torch.from_numpy(cu_seqlens)),
        lengths=lengths,
    )


def residue_rows(pack: Pack, num_specials: tuple[int, int], transfer: Transfer) -> Tensor:
    """(R,) int64 indices of the tokens that are residues, in order; specials at each end left out."""
    first, last = num_specials
    rows = [np.arange(start + first, end - last) for start, end in pack.spans()]
    return transfer.to_device(torch.from_numpy(np.concatenate(rows)))
