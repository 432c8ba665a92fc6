"""Means over residues."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.packing import pack, residue_rows
from models.pooling import mean_pool
from models.transfer import Transfer


def test_the_mean_is_over_each_sequences_own_residues() -> None:
    residues = torch.tensor([[1.0, 0.0], [3.0, 4.0], [10.0, -10.0]])
    pooled = mean_pool(residues, torch.tensor([2, 1]))
    assert pooled.tolist() == [[2.0, 2.0], [10.0, -10.0]]


@pytest.mark.parametrize("num_specials", [(1, 1), (0, 1)])
def test_special_tokens_are_not_in_the_mean(num_specials: tuple[int, int]) -> None:
    first, last = num_specials
    num_residues = [3, 1, 7]
    transfer = Transfer(torch.device("cpu"))
    batch = pack([np.zeros(n + first + last, np.int64) for n in num_residues], transfer)
    hidden = torch.full((sum(batch.lengths), 2), float("nan"))  # a special in a mean would make it nan
    for index, (start, end) in enumerate(batch.spans()):
        hidden[start + first : end - last] = float(index)
    pooled = mean_pool(hidden[residue_rows(batch, num_specials, transfer)], torch.tensor(num_residues))
    assert pooled.tolist() == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    # 70,000 ones: float16 overflows at 65,504, and bfloat16 sums stop growing at 256
    pooled = mean_pool(torch.ones(70_000, 1, dtype=dtype), torch.tensor([70_000]))
    assert pooled.dtype == torch.float32
    assert pooled.item() == 1.0
