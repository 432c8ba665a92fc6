"""Our kernels for linear layers and norms, against torch's operations in float32 on the same bfloat16 numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import each_sequence
from models.backends.base import Activation, Weights
from models.backends.native import Native
from models.backends.portable import Portable
from tests.models.backends.panels import padded_rows_of, panels_of, rows_of
from tests.models.backends.variants import CPU

PORTABLE = Portable(CPU, torch.float32, each_sequence)
INF, NAN = math.inf, math.nan

# Rows, summed numbers, columns: blocks are 32 wide, groups of rows end within 488 rows of 1 MB
SHAPES = [(1, 24, 24), (31, 80, 33), (32, 144, 144), (33, 1, 80), (100, 144, 1), (64, 64, 64), (700, 1100, 70)]
LONG_SUMS = [(33, 2048, 24), (5, 2080, 40), (700, 2080, 70), (3, 4096, 64), (33, 16384, 32)]

# Half a unit in the last of bfloat16's 8 digits
ROUNDING = 2**-8


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers that bfloat16 has, in float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


def drawn_weights(num_columns: int, dim: int, has_bias: bool, seed: int = 1) -> Weights:
    """Such that what comes out is about as large as what goes in."""
    weight = drawn(num_columns, dim, seed=seed) * 2.0 ** -round(math.log2(dim) / 2)
    return Weights(weight, drawn(num_columns, seed=seed + 1) if has_bias else None)


def assert_rounded(found: Tensor, expected: Tensor, atol: float) -> None:
    """Within one rounding to bfloat16, and `atol` for what is off before it."""
    assert found.shape == expected.shape
    excess = (found.double() - expected.double()).abs() - ROUNDING * expected.double().abs()
    assert excess.max() <= atol


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_queries_keys_and_values_are_a_linear_layer(
    kernels: Native, shape: tuple[int, int, int], has_bias: bool
) -> None:
    num_rows, dim, num_columns = shape
    x, weights = drawn(num_rows, dim), drawn_weights(num_columns, dim, has_bias)
    found = kernels.qkv(weights)(panels_of(x))
    assert found.dtype == torch.bfloat16
    # Measured: 3.8e-7
    assert_rounded(found[:num_rows, :num_columns], PORTABLE.qkv(weights)(x), atol=2e-6)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_activation_follows_its_linear_layer(
    kernels: Native, shape: tuple[int, int, int], has_bias: bool, activation: Activation
) -> None:
    num_rows, dim, num_columns = shape
    x, weights = drawn(num_rows, dim), drawn_weights(num_columns, dim, has_bias)
    found = kernels.activated(weights, activation)(panels_of(x))
    expected = PORTABLE.activated(weights, activation)(x)
    assert_rounded(rows_of(found, num_rows, num_columns), expected, atol=1e-5)  # Measured: 2.9e-6
    assert not padded_rows_of(found, num_columns)[:num_rows, num_columns:].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_gate_scales_its_own_columns(kernels: Native, shape: tuple[int, int, int]) -> None:
    num_rows, dim, num_columns = shape
    x, gate, weights = drawn(num_rows, dim), *(drawn_weights(num_columns, dim, False, seed) for seed in (1, 2))
    found = kernels.gated(gate, weights)(panels_of(x))
    # Measured: 1.8e-7
    assert_rounded(rows_of(found, num_rows, num_columns), PORTABLE.gated(gate, weights)(x), atol=2e-6)
    assert not padded_rows_of(found, num_columns)[:num_rows, num_columns:].any()


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES + LONG_SUMS)
def test_a_linear_layer_is_added_in_float32(kernels: Native, shape: tuple[int, int, int], has_bias: bool) -> None:
    num_rows, dim, num_columns = shape
    hidden, weights = drawn(num_rows, dim), drawn_weights(num_columns, dim, has_bias)
    x = torch.randn(num_rows, num_columns, generator=torch.Generator().manual_seed(3))
    expected = F.linear(hidden.double(), weights.weight.double()) + x
    if weights.bias is not None:
        expected += weights.bias
    kernels.added(weights)(panels_of(hidden), x)
    # Measured: 1.1e-6 (AMX), 3.1e-6 (AVX512-BF16), 2.3e-6 (torch in float32)
    torch.testing.assert_close(x.double(), expected, rtol=0, atol=1e-5)


def test_what_lies_behind_the_last_row_and_column_is_left_alone(kernels: Native) -> None:
    whole = torch.full((40, 48), 7.0)
    x = whole[:33].flatten()[: 33 * 40].view(33, 40)  # rows of 40 in memory that goes on
    kernels.added(drawn_weights(40, 64, True))(panels_of(drawn(33, 64)), x)
    assert (whole.flatten()[33 * 40 :] == 7.0).all()
    assert not (x == 7.0).any()


def test_weights_may_be_of_any_float(kernels: Native) -> None:
    x, weights = panels_of(drawn(33, 80)), drawn_weights(40, 80, True)
    assert weights.bias is not None
    expected = kernels.qkv(weights)(x)
    for dtype in (torch.bfloat16, torch.float16):
        found = kernels.qkv(Weights(weights.weight.to(dtype), weights.bias.to(dtype)))(x)
        assert torch.equal(found, expected)


# Far out, where torch's function is 0, x, or nothing that can be computed with
FAR = [
    0.0,
    -0.0,
    1e-30,
    -1e-30,
    0.5,
    -0.5,
    1,
    -1,
    3,
    -3,
    5.5,
    -5.5,
    20,
    -20,
    100,
    -100,
    1e30,
    -1e30,
    INF,
    -INF,
    NAN,
]


def through(layer: Callable[[Tensor], Tensor], values: list[float]) -> Tensor:
    """Each value in a row of its own, through a layer of one column."""
    return rows_of(layer(panels_of(torch.tensor(values).view(-1, 1))), len(values), 1).view(-1)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_an_activation_is_torchs_at_every_size_of_number(kernels: Native, activation: Activation) -> None:
    one = Weights(torch.ones(1, 1))
    found = through(kernels.activated(one, activation), FAR)
    expected = PORTABLE.activated(one, activation)(torch.tensor(FAR).bfloat16().float().view(-1, 1)).view(-1)
    finite = expected.isfinite()
    assert finite.sum() == len(FAR) - 2 - (activation == "gelu" and 1)
    assert_rounded(found[finite], expected[finite], atol=1e-6)  # Measured: 1.6e-7
    assert found[-3] == INF
    assert found[-1].isnan()


def test_a_gate_is_torchs_at_every_size_of_number(kernels: Native) -> None:
    one = Weights(torch.ones(1, 1))
    found = through(kernels.gated(one, Weights(torch.full((1, 1), 2.0**-100))), FAR)
    values = torch.tensor(FAR).bfloat16().double()
    expected = F.gelu(values, approximate="tanh") * values * 2.0**-100
    finite = expected.float().isfinite()
    assert_rounded(found[finite], expected[finite], atol=1e-7)  # Measured: 9.3e-9
    assert not found[~finite].isfinite().any()


def test_gelu_is_torchs_between_minus_and_plus_eight(kernels: Native) -> None:
    values = torch.linspace(-8, 8, 4001).tolist()
    found = through(kernels.activated(Weights(torch.ones(1, 1)), "gelu"), values)
    assert_rounded(found, F.gelu(torch.tensor(values).bfloat16().double()), atol=1e-5)  # Measured: 2.8e-6


def test_a_nan_stays_in_its_row(kernels: Native) -> None:
    x, weights, gate = drawn(40, 80), drawn_weights(48, 80, True), drawn_weights(48, 80, False)
    spoilt = x.clone()
    spoilt[7, 3], spoilt[35, 79] = NAN, INF
    others = [row for row in range(40) if row not in (7, 35)]

    def outputs(x: Tensor) -> list[Tensor]:
        hidden, total = panels_of(x), torch.zeros(40, 48)
        kernels.added(weights)(hidden, total)
        layers = [
            kernels.activated(weights, "gelu"),
            kernels.activated(weights, "relu"),
            kernels.gated(gate, gate),
        ]
        return [total, kernels.qkv(weights)(hidden), *(rows_of(layer(hidden), 40, 48) for layer in layers)]

    for found, expected in zip(outputs(spoilt), outputs(x), strict=True):
        assert torch.equal(found[others], expected[others])
        assert found[7, :48].isnan().any()
        assert not found[35, :48].isfinite().all()


@pytest.mark.usefixtures("_threads_restored")
def test_a_row_is_the_same_bits_whatever_its_place_and_the_threads(kernels: Native) -> None:
    x, weights, gate = drawn(700, 2080), drawn_weights(70, 2080, True), drawn_weights(70, 2080, False)
    norm = kernels.norm(drawn(2080), drawn(2080, seed=1), 1e-5)

    def outputs(x: Tensor) -> list[Tensor]:
        hidden, total = norm(x), torch.zeros(len(x), 70)
        kernels.added(weights)(hidden, total)
        panels = [kernels.activated(weights, "gelu"), kernels.gated(gate, gate)]
        rows = [rows_of(layer(hidden), len(x), 70) for layer in panels]
        return [rows_of(hidden, len(x), 2080), total, kernels.qkv(weights)(hidden)[: len(x)], *rows]

    torch.set_num_threads(1)
    whole = outputs(x)
    for num_threads in (2, 7):
        torch.set_num_threads(num_threads)
        assert all(map(torch.equal, outputs(x), whole))
        for start, end in ((0, 1), (17, 50), (699, 700), (231, 700)):
            parts = outputs(x[start:end].contiguous())
            assert all(torch.equal(part, all_of[start:end]) for part, all_of in zip(parts, whole, strict=True))


@pytest.mark.parametrize("has_bias", [False, True], ids=["rms", "layer"])
@pytest.mark.parametrize("dim", [1, 24, 32, 80, 144, 1280])
@pytest.mark.parametrize("num_rows", [1, 31, 32, 33, 100])
def test_a_norm_is_torchs(kernels: Native, num_rows: int, dim: int, has_bias: bool) -> None:
    x, weight, bias = drawn(num_rows, dim), drawn(dim, seed=1), drawn(dim, seed=2) if has_bias else None
    found = kernels.norm(weight, bias, 1e-5)(x)
    expected = PORTABLE.norm(weight, bias, 1e-5)(x)
    assert_rounded(rows_of(found, num_rows, dim), expected, atol=1e-6)  # Measured: below the rounding
    assert not padded_rows_of(found, dim)[:num_rows, dim:].any()


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 1e4, 1e15])
def test_a_norm_takes_numbers_of_every_size(kernels: Native, size: float) -> None:
    """1e-6 is below the square root of eps, which then decides."""
    x, weight, bias = size * drawn(33, 144), drawn(144, seed=1), drawn(144, seed=2)
    for shift in (None, bias):
        found = rows_of(kernels.norm(weight, shift, 1e-5)(x), 33, 144)
        assert_rounded(found, PORTABLE.norm(weight, shift, 1e-5)(x), atol=1e-6)  # Measured: below


@pytest.mark.parametrize("offset", [100.0, 1e4])
def test_a_layer_norm_takes_a_large_mean_away(kernels: Native, offset: float) -> None:
    x, weight, bias = drawn(33, 144) + offset, drawn(144, seed=1), drawn(144, seed=2)
    found = rows_of(kernels.norm(weight, bias, 1e-5)(x), 33, 144)
    expected = F.layer_norm(x.double(), (144,), weight.double(), bias.double(), 1e-5)
    # Measured: 8.0e-7 and 1.8e-3; torch in float32: 8.9e-6 and 1.9e-3
    assert_rounded(found, expected, atol=4e-7 * offset)


def test_a_norm_of_a_nan_is_nan_in_its_row_alone(kernels: Native) -> None:
    x, weight, bias = drawn(33, 80), drawn(80, seed=1), drawn(80, seed=2)
    spoilt = x.clone()
    spoilt[4, 79], spoilt[32, 0] = NAN, INF
    for shift in (None, bias):
        norm = kernels.norm(weight, shift, 1e-5)
        found, expected = (rows_of(norm(rows), 33, 80) for rows in (spoilt, x))
        others = [row for row in range(33) if row not in (4, 32)]
        assert torch.equal(found[others], expected[others])
        assert found[4].isnan().all()
        assert found[32].isnan().any()
