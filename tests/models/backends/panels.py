"""Rows of numbers as the kernels hold them, written apart from models/: the layout of models/kernels/blocks.h."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 32


def panels_of(rows: Tensor) -> Tensor:
    """(T, D) as panels of bfloat16, flat, zeros around."""
    padded = F.pad(rows.to(torch.bfloat16), (0, -rows.shape[1] % SIDE, 0, -len(rows) % SIDE))
    return padded.view(len(padded) // SIDE, SIDE, -1, SIDE).transpose(1, 2).flatten()


def padded_rows_of(panels: Tensor, dim: int) -> Tensor:
    """Panels as float32 rows, with the rows and columns that fill up the last block."""
    num_steps = -(-dim // SIDE)
    return panels.float().view(-1, num_steps, SIDE, SIDE).transpose(1, 2).reshape(-1, num_steps * SIDE)


def rows_of(panels: Tensor, num_rows: int, dim: int) -> Tensor:
    """(T, D) float32."""
    return padded_rows_of(panels, dim)[:num_rows, :dim]
