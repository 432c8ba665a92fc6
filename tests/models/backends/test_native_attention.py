"""Our attention kernel against the definition in float64."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.backends.native import Native
from models.packing import Pack, pack
from models.positions import ROTARY_BASE, Buckets, PositionBias, Rotary, relative_position_bucket
from models.transfer import Transfer
from tests.models.backends.panels import SIDE, padded_rows_of, rows_of
from tests.models.backends.variants import CPU
from tests.models.references import worst_relative_error

# Around tiles of 16, blocks of 32, and the 512 keys and queries that are worked on at a time
LENGTHS = (1, 15, 16, 17, 31, 32, 33, 511, 512, 513, 1025)
NUM_HEADS = 3
MAX_DISTANCE = 128
TOLERANCE = 6e-3  # of the norm of a row of a head. Measured: 4.9e-3; bfloat16 rounds to 3.9e-3


@dataclass(frozen=True)
class Case:
    """What attention is asked: for rotated, a Rotary; for biased, the learned biases (32, H)."""

    pack: Pack
    qkv: Tensor
    heads: tuple[int, int]
    scale: float
    is_rotated: bool = False
    biases: Tensor | None = None


def packed(*lengths: int) -> Pack:
    return pack([np.zeros(length, np.int64) for length in lengths], Transfer(CPU))


def drawn(num_tokens: int, heads: tuple[int, int], seed: int = 0) -> Tensor:
    """Normal queries, keys and values. What fills up the last block is NaN, as nobody may read it."""
    num_columns = 3 * heads[0] * heads[1]
    qkv = torch.randn(num_tokens, num_columns, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return F.pad(qkv, (0, -num_columns % SIDE, 0, -num_tokens % SIDE), value=math.nan)


def drawn_biases(num_heads: int) -> Tensor:
    return 2 * torch.randn(32, num_heads, generator=torch.Generator().manual_seed(1))


def by_kernel(kernels: Native, case: Case) -> Tensor:
    rotary = Rotary(case.heads[1], CPU) if case.is_rotated else None
    bias = None if case.biases is None else PositionBias(Buckets(case.biases, MAX_DISTANCE), torch.bfloat16)
    return kernels.attention(case.pack, case.heads, rotary, bias)(case.qkv, case.scale)


def rotated(x: Tensor) -> Tensor:
    """(L, H, K) float64: each pair (i, i + K / 2) of a head turned by position / 10000^(2i / K)."""
    half = x.shape[-1] // 2
    pairs = torch.view_as_complex(torch.stack([x[..., :half], x[..., half:]], -1))
    frequencies = ROTARY_BASE ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(len(x), dtype=torch.float64).outer(frequencies).unsqueeze(1)
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles))
    return torch.cat(turned.unbind(-1), -1)


def bias_of(biases: Tensor, length: int) -> Tensor:
    """(H, L, L)."""
    distances = torch.arange(1 - length, length)
    by_distance = biases.T[:, relative_position_bucket(distances, len(biases), MAX_DISTANCE)]
    places = torch.arange(length)
    return by_distance[:, places - places.unsqueeze(1) + length - 1]


def by_hand(case: Case) -> Tensor:
    """(T, H K) float64: the definition. What is rotated is bfloat16 again before it is multiplied."""
    num_heads, head_dim = case.heads
    out = []
    for start, end in case.pack.spans():
        rows = case.qkv[start:end, : 3 * num_heads * head_dim].double()
        q, k, v = rows.view(-1, 3, num_heads, head_dim).unbind(1)
        if case.is_rotated:
            q, k = (rotated(x).bfloat16().double() for x in (q, k))
        scores = case.scale * torch.einsum("qhk,lhk->hql", q, k)
        if case.biases is not None:
            scores += bias_of(case.biases, end - start)
        out.append(torch.einsum("hql,lhk->qhk", scores.softmax(-1), v).flatten(1))
    return torch.cat(out)


def error(found: Tensor, expected: Tensor, heads: tuple[int, int]) -> float:
    """Largest, over rows and heads, of the difference's norm relative to the definition's."""
    rows = rows_of(found, *expected.shape)
    return worst_relative_error(rows.view(-1, *heads).numpy(), expected.view(-1, *heads).numpy())


@functools.cache
def many_lengths(kind: str, head_dim: int) -> tuple[Case, Tensor]:
    """With what the definition gives; the builds share it."""
    heads = (NUM_HEADS, head_dim)
    biases = drawn_biases(NUM_HEADS) if kind == "biased" else None
    case = Case(packed(*LENGTHS), drawn(sum(LENGTHS), heads), heads, head_dim**-0.5, kind == "rotated", biases)
    return case, by_hand(case)


@pytest.mark.parametrize("kind", ["plain", "rotated", "biased"])
@pytest.mark.parametrize("head_dim", [16, 20, 24, 32, 64, 80, 128])
def test_attention_is_its_definition(kernels: Native, head_dim: int, kind: str) -> None:
    case, expected = many_lengths(kind, head_dim)
    found = by_kernel(kernels, case)
    assert error(found, expected, case.heads) <= TOLERANCE
    # What fills up the last block must be zeros, as the linear layer behind multiplies it
    filled = padded_rows_of(found, NUM_HEADS * head_dim)[: sum(LENGTHS), NUM_HEADS * head_dim :]
    assert filled.shape[1] == -NUM_HEADS * head_dim % SIDE
    assert not filled.any()


def graded(length: int, heads: tuple[int, int], grades: list[float]) -> Tensor:
    """Drawn rows in which every score of a run of 512 keys is larger by the run's grade, where scale is 1."""
    qkv = drawn(length, heads)
    rows = qkv[:length, : 3 * heads[0] * heads[1]].view(length, 3, *heads)
    rows[:, :2] *= 0.25
    rows[:, 0, :, 0] = 1.0
    rows[:, 1, :, 0] = torch.tensor(grades).repeat_interleave(512)[:length].view(-1, 1)
    return qkv


@pytest.mark.parametrize(
    "grades",
    [
        [0, 2, 4, 6],  # the largest score comes last: what is summed before is made less, each time
        [6, 4, 2, 0],  # it comes first
        [2, 6, 0, 4],
        [-300, -200, -100, 0],  # what comes before weighs nothing
        [0, -100, -200, -300],
        [-2000, 0, 2000, 2000],
    ],
)
@pytest.mark.parametrize("is_biased", [False, True])
def test_the_largest_score_may_be_in_any_run_of_keys(
    kernels: Native, grades: list[float], is_biased: bool
) -> None:
    heads = (2, 24)
    biases = drawn_biases(2) if is_biased else None
    case = Case(packed(1700), graded(1700, heads, grades), heads, 1.0, biases=biases)
    assert error(by_kernel(kernels, case), by_hand(case), heads) <= TOLERANCE


def test_rows_of_one_block_differ_in_where_their_largest_score_is(kernels: Native) -> None:
    """Queries look for the first run of keys and for the last one in turn."""
    heads, length = (1, 32), 1100
    qkv = graded(length, heads, [8, 0, -8])
    qkv[1:length:2, 0] *= -1
    case = Case(packed(length), qkv, heads, 1.0)
    assert error(by_kernel(kernels, case), by_hand(case), heads) <= TOLERANCE


@pytest.mark.parametrize("is_biased", [False, True])
def test_a_long_sequence_is_attended_whole(kernels: Native, is_biased: bool) -> None:
    heads, length = (1, 64), 5000
    biases = drawn_biases(1) if is_biased else None
    case = Case(packed(3, length), drawn(length + 3, heads), heads, 0.125, not is_biased, biases)
    assert error(by_kernel(kernels, case), by_hand(case), heads) <= TOLERANCE


@pytest.mark.usefixtures("_threads_restored")
@pytest.mark.parametrize("is_rotated", [False, True])
@pytest.mark.parametrize("head_dim", [16, 20, 64, 80])
def test_a_nan_stays_in_its_sequence(kernels: Native, head_dim: int, is_rotated: bool) -> None:
    """One thread works on all of them, so that each finds what the one before left."""
    torch.set_num_threads(1)
    heads, lengths = (1, head_dim), (600, 33, 200, 17, 1, 64)
    batch, qkv = packed(*lengths), drawn(sum(lengths), heads)
    before = by_kernel(kernels, Case(batch, qkv, heads, 1.0, is_rotated))
    spoilt = qkv.clone()
    for index in (0, 2, 5):
        start, end = batch.spans()[index]
        spoilt[start:end] = math.nan
    after = by_kernel(kernels, Case(batch, spoilt, heads, 1.0, is_rotated))
    one, other = (rows_of(found, sum(lengths), head_dim) for found in (before, after))
    for index, (start, end) in enumerate(batch.spans()):
        if index in (0, 2, 5):
            assert other[start:end].isnan().all()
        else:
            assert torch.equal(other[start:end], one[start:end])


def test_a_nan_in_a_key_is_in_every_row_of_its_head_alone(kernels: Native) -> None:
    heads, length = (2, 32), 700
    qkv = drawn(length, heads)
    qkv[650, 2 * 32 + 5] = math.nan  # of the first head
    found = rows_of(by_kernel(kernels, Case(packed(length), qkv, heads, 1.0)), length, 64)
    assert found[:, :32].isnan().all()
    assert found[:, 32:].isfinite().all()


@pytest.mark.usefixtures("_threads_restored")
def test_more_threads_than_work_change_no_bit(kernels: Native) -> None:
    heads = (3, 20)
    case = Case(packed(40, 1, 600), drawn(641, heads), heads, 1.0, is_rotated=True)
    torch.set_num_threads(1)
    one = by_kernel(kernels, case)
    for num_threads in (2, 64):
        torch.set_num_threads(num_threads)
        assert torch.equal(by_kernel(kernels, case)[: 640 * 64], one[: 640 * 64])


def test_a_sequence_is_the_same_bits_wherever_it_lies(kernels: Native) -> None:
    heads, length = (3, 20), 530
    own = drawn(length, heads)[:length]
    for before in (1, 16, 31, 70):
        qkv = drawn(before + length + 40, heads, seed=before)
        qkv[before : before + length] = own
        found = by_kernel(kernels, Case(packed(before, length, 40), qkv, heads, 1.0, is_rotated=True))
        rows = rows_of(found, before + length, 60)[before:]
        alone = Case(packed(length), F.pad(own, (0, 0, 0, -length % SIDE)), heads, 1.0, is_rotated=True)
        assert torch.equal(rows, rows_of(by_kernel(kernels, alone), length, 60))
