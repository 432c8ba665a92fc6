"""From hidden states of residues to one vector a sequence."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_pool(residues: Tensor, num_residues: Tensor) -> Tensor:
    """Mean over each sequence's residues, in float32 whatever the input's precision.

    Args:
        residues: (R, D) hidden states of residues only, sequences end to end.
        num_residues: (B,) int64 residues of each sequence; they sum to R.
    Returns:
        (B, D) float32.
    Source: fair-esm scripts/extract.py averages tokens 1..len; ProtTrans README averages emb[:len].
    """
    return torch.segment_reduce(residues.float(), "mean", lengths=num_residues)
