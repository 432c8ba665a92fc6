"""Sequences end to end in one flat tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.packing import Pack, pack, residue_rows
from models.transfer import Transfer

ON_CPU = Transfer(torch.device("cpu"))


def packed(*lengths: int) -> Pack:
    """Token i of sequence s is 100 s + i."""
    return pack([100 * s + np.arange(length) for s, length in enumerate(lengths)], ON_CPU)


def test_a_pack_holds_every_token_once_and_no_padding() -> None:
    batch = packed(3, 1, 2)
    assert batch.tokens.tolist() == [0, 1, 2, 100, 200, 201]
    assert batch.tokens.dtype == torch.int64


def test_positions_start_anew_in_each_sequence() -> None:
    batch = packed(3, 1, 2)
    assert batch.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert batch.positions.dtype == torch.int64


def test_starts_end_with_the_number_of_tokens() -> None:
    batch = packed(3, 1, 2)
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 6]
    assert batch.cu_seqlens.dtype == torch.int32  # what variable-length kernels take


def test_spans_and_lengths_are_known_without_the_device() -> None:
    batch = packed(3, 1, 2)
    assert batch.spans() == [(0, 3), (3, 4), (4, 6)]
    assert batch.lengths == (3, 1, 2)
    assert batch.max_length == 3


@pytest.mark.parametrize(
    ("num_specials", "expected"),
    [((1, 1), [1, 2, 5]), ((0, 1), [0, 1, 2, 4, 5]), ((0, 0), [0, 1, 2, 3, 4, 5, 6])],
)
def test_residue_rows_leave_the_specials_out(num_specials: tuple[int, int], expected: list[int]) -> None:
    assert residue_rows(packed(4, 3), num_specials, ON_CPU).tolist() == expected


def test_a_sequence_of_specials_alone_has_no_rows() -> None:
    assert residue_rows(packed(2, 3, 2), (1, 1), ON_CPU).tolist() == [3]
