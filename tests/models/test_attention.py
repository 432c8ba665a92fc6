"""Attention inside the sequences of a pack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models import attention
from models.attention import attend_each, attend_varlen, choose_attention
from models.packing import Pack, pack

LENGTHS = (5, 1, 64, 200)
NUM_HEADS, HEAD_DIM = 3, 8


def packed(lengths: tuple[int, ...] = LENGTHS, device: str = "cpu") -> Pack:
    return pack([np.zeros(length, np.int64) for length in lengths], torch.device(device))


def drawn(num_tokens: int, num_heads: int = NUM_HEADS, head_dim: int = HEAD_DIM) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, each (T, H, K)."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, num_tokens, num_heads, head_dim, generator=generator)
    return q, k, v


def waves(start: int, end: int, length: int) -> Tensor:
    """A bias that differs for every head, query and key, and not by what a softmax would not see."""
    query = torch.arange(start, end).view(1, -1, 1)
    key = torch.arange(length).view(1, 1, -1)
    head = torch.arange(1, NUM_HEADS + 1).view(-1, 1, 1)
    return torch.sin(head * (0.1 * key - query + 0.01 * key * query))


def by_hand(query: Tensor, key: Tensor, value: Tensor, pack: Pack, is_biased: bool) -> Tensor:
    """The definition, in float64."""
    out = []
    for start, end in pack.spans():
        q, k, v = (x[start:end].double() for x in (query, key, value))
        scores = torch.einsum("qhk,lhk->hql", q, k)
        if is_biased:
            scores = scores + waves(0, end - start, end - start)
        out.append(torch.einsum("hql,lhk->qhk", scores.softmax(-1), v))
    return torch.cat(out)


@pytest.mark.parametrize("is_biased", [False, True])
def test_attend_each_is_softmax_attention_inside_sequences(is_biased: bool) -> None:
    query, key, value = drawn(sum(LENGTHS))
    found = attend_each(query, key, value, packed(), waves if is_biased else None, scale=1.0)
    # Measured: 2.1e-6 at most, of values up to 4
    torch.testing.assert_close(found.double(), by_hand(query, key, value, packed(), is_biased), rtol=0, atol=1e-5)


def test_no_sequence_sees_another() -> None:
    query, key, value = drawn(sum(LENGTHS))
    before = attend_each(query, key, value, packed(), None, scale=1.0)
    key[5:], value[5:] = 1e3, -1e3
    after = attend_each(query, key, value, packed(), None, scale=1.0)
    assert torch.equal(before[:5], after[:5])
    assert not torch.equal(before[5:], after[5:])


@pytest.mark.parametrize("max_numbers", [1, 3 * 200, 3 * 200 * 7, 3 * 200 * 199])
def test_blocks_of_queries_give_what_one_block_gives(max_numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = drawn(sum(LENGTHS))
    asked: list[tuple[int, int, int]] = []

    def watched(start: int, end: int, length: int) -> Tensor:
        asked.append((start, end, length))
        return waves(start, end, length)

    whole = attend_each(query, key, value, packed(), watched, scale=1.0)
    assert asked == [(0, length, length) for length in LENGTHS]
    asked.clear()
    monkeypatch.setattr(attention, "MAX_BIAS_NUMBERS", max_numbers)
    cut = attend_each(query, key, value, packed(), watched, scale=1.0)
    assert len(asked) > len(LENGTHS)
    assert all(end - start == 1 or 3 * (end - start) * length <= max_numbers for start, end, length in asked)
    # Measured: 1.4e-6 at most
    torch.testing.assert_close(cut, whole, rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_biased", [False, True])
def test_a_cpu_attends_sequence_after_sequence(dtype: torch.dtype, is_biased: bool) -> None:
    backend, reason = choose_attention(torch.device("cpu"), dtype, is_biased)
    assert backend is attend_each
    assert reason == "attend_each: no variable-length kernel on cpu"


@pytest.mark.parametrize(
    ("dtype", "is_biased", "reason"),
    [
        (torch.float32, False, "attend_each: variable-length kernels are 16-bit only"),
        (torch.bfloat16, True, "attend_each: variable-length kernels take no position bias"),
    ],
)
def test_a_gpu_attends_in_one_kernel_only_where_the_kernel_can(
    dtype: torch.dtype, is_biased: bool, reason: str
) -> None:
    assert choose_attention(torch.device("cuda:0"), dtype, is_biased) == (attend_each, reason)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="varlen_attn is a CUDA kernel, and there is no GPU here")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_kernel_for_all_sequences_gives_what_one_after_another_gives(dtype: torch.dtype) -> None:
    batch = packed(device="cuda")
    query, key, value = (x.to("cuda", dtype) for x in drawn(sum(LENGTHS), 20, 64))
    query *= 64**-0.5
    backend, _ = choose_attention(batch.tokens.device, dtype, biased=False)
    assert backend is attend_varlen
    found = attend_varlen(query, key, value, batch, None, scale=1.0)
    expected = attend_each(query.float(), key.float(), value.float(), batch, None, scale=1.0)
    # Not measured on this project's machines yet: one unit in the last of bfloat16's 8 digits, for values up to 2
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=2**-7)
