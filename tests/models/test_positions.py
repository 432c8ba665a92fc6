"""Rotations and biases: the tables against their definitions, however they grew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models import positions
from models.positions import Buckets, PositionBias, Rotary, relative_position_bucket

CPU = torch.device("cpu")
NUM_HEADS, MAX_DISTANCE = 3, 128


def drawn_bias(dtype: torch.dtype = torch.float32) -> tuple[PositionBias, Tensor]:
    """With its weights, (32, H)."""
    weights = torch.randn(32, NUM_HEADS, generator=torch.Generator().manual_seed(0))
    return PositionBias(Buckets(weights, MAX_DISTANCE), dtype), weights


def by_hand(weights: Tensor, length: int) -> Tensor:
    """(H, L, L)."""
    places = torch.arange(length)
    bucket = relative_position_bucket(places - places.unsqueeze(1), len(weights), MAX_DISTANCE)
    return weights[bucket].permute(2, 0, 1)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (32, 64), (16, 256)])
def test_buckets_are_those_of_transformers_at_every_distance(num_buckets: int, max_distance: int) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-6000, 6001)
    expected = T5Attention._relative_position_bucket(distances, True, num_buckets, max_distance)
    assert torch.equal(relative_position_bucket(distances, num_buckets, max_distance), expected)


@pytest.mark.parametrize("head_dim", [16, 20, 64])
def test_angles_are_positions_times_falling_frequencies(head_dim: int) -> None:
    rotary = Rotary(head_dim, CPU)
    rotary.reach(1500)
    frequencies = 10_000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.arange(len(rotary.cos), dtype=torch.float64).outer(frequencies)
    assert rotary.cos.dtype == rotary.sin.dtype == torch.float32
    # Measured: 8.4e-5, at the last positions, where float32's angles are that far apart
    torch.testing.assert_close(rotary.cos.double(), angles.cos(), rtol=0, atol=2e-4)
    torch.testing.assert_close(rotary.sin.double(), angles.sin(), rtol=0, atol=2e-4)


def test_a_grown_table_of_angles_begins_as_before() -> None:
    rotary = Rotary(16, CPU)
    rotary.reach(1)
    first = rotary.cos.clone(), rotary.sin.clone()
    rotary.reach(len(first[0]))
    assert len(rotary.cos) == len(first[0])  # long enough
    rotary.reach(len(first[0]) + 1)
    assert len(rotary.cos) > len(first[0])
    assert torch.equal(rotary.cos[: len(first[0])], first[0])
    assert torch.equal(rotary.sin[: len(first[1])], first[1])


def test_a_table_never_shrinks() -> None:
    rotary, (bias, _) = Rotary(16, CPU), drawn_bias()
    rotary.reach(3000)
    bias.reach(3000)
    table = rotary.cos, bias.by_distance, bias.longest
    rotary.reach(5)
    bias.reach(5)
    assert rotary.cos is table[0]
    assert bias.by_distance is table[1]
    assert bias.longest == table[2] >= 3000


@pytest.mark.parametrize("longest", [1, 1024, 1025, 5000])
def test_the_bias_of_each_distance_is_that_of_its_bucket(longest: int) -> None:
    bias, weights = drawn_bias(torch.bfloat16)
    bias.reach(longest)
    assert bias.longest >= longest
    assert bias.by_distance.shape == (NUM_HEADS, 2 * bias.longest - 1)
    assert bias.by_distance.dtype == torch.float32  # whatever the products are
    assert bias.by_distance.is_contiguous()  # kernels read it by address
    distances = torch.arange(1 - bias.longest, bias.longest)
    expected = weights[relative_position_bucket(distances, 32, MAX_DISTANCE)].T
    assert torch.equal(bias.by_distance, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [(1, 300, 7, 1500), (1500, 300, 7, 1), (256, 257)])
def test_a_block_of_biases_is_that_of_its_distances(dtype: torch.dtype, lengths: tuple[int, ...]) -> None:
    """In whatever order lengths come, as a matrix is kept between them."""
    bias, weights = drawn_bias(dtype)
    for length in lengths:
        bias.reach(length)
        expected = by_hand(weights, length).to(dtype)
        for start, end in ((0, length), (length // 2, length), (length // 3, length // 3 + 1)):
            assert torch.equal(bias.block(start, end, length), expected[:, start:end])


def test_a_matrix_that_is_too_large_is_made_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions, "MAX_MATRIX_NUMBERS", NUM_HEADS * 300 * 300)
    bias, weights = drawn_bias()
    for length in (299, 300, 301, 700, 20):
        bias.reach(length)
        expected = by_hand(weights, length)
        for start, end in ((0, length), (length - 7, length - 3)):
            assert torch.equal(bias.block(start, end, length), expected[:, start:end])
        assert bias._matrix.numel() <= NUM_HEADS * 300 * 300
