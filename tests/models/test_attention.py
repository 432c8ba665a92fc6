"""torch's attention inside the sequences of a pack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models import attention
from models.attention import Attention, choose_attention, each_sequence, flex, varlen
from models.packing import Pack, pack
from models.positions import Buckets, PositionBias, relative_position_bucket
from models.transfer import Transfer

LENGTHS = (5, 1, 64, 200)
NUM_HEADS, HEAD_DIM = 3, 8
MAX_DISTANCE = 128

# torch advises to compile it; a CPU runs it as it stands, for tests
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def packed(lengths: tuple[int, ...] = LENGTHS, device: str = "cpu") -> Pack:
    return pack([np.zeros(length, np.int64) for length in lengths], Transfer(torch.device(device)))


def drawn(num_tokens: int, num_heads: int = NUM_HEADS, head_dim: int = HEAD_DIM) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, each (T, H, K)."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, num_tokens, num_heads, head_dim, generator=generator)
    return q, k, v


def drawn_biases(num_heads: int = NUM_HEADS) -> Tensor:
    """(32, H)."""
    return 2 * torch.randn(32, num_heads, generator=torch.Generator().manual_seed(1))


class Watched(PositionBias):
    """Writes down which blocks it is asked for."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__(Buckets(weights, MAX_DISTANCE), torch.float32)
        self.asked: list[tuple[int, int, int]] = []
        self.reach(max(LENGTHS))

    def block(self, start: int, end: int, length: int) -> Tensor:
        self.asked.append((start, end, length))
        return super().block(start, end, length)


def by_hand(query: Tensor, key: Tensor, value: Tensor, pack: Pack, biases: Tensor | None) -> Tensor:
    """The definition, in float64."""
    out = []
    for start, end in pack.spans():
        q, k, v = (x[start:end].double() for x in (query, key, value))
        scores = torch.einsum("qhk,lhk->hql", q, k)
        if biases is not None:
            places = torch.arange(end - start)
            bucket = relative_position_bucket(places - places.unsqueeze(1), len(biases), MAX_DISTANCE)
            scores = scores + biases[bucket].permute(2, 0, 1)
        out.append(torch.einsum("hql,lhk->qhk", scores.softmax(-1), v))
    return torch.cat(out)


@pytest.mark.parametrize("way", [each_sequence, flex])
@pytest.mark.parametrize("is_biased", [False, True])
@pytest.mark.parametrize("lengths", [LENGTHS, (128,), (1,), (127, 129)])
def test_each_way_is_softmax_attention_inside_sequences(
    way: Attention, is_biased: bool, lengths: tuple[int, ...]
) -> None:
    query, key, value = drawn(sum(lengths))
    biases = drawn_biases() if is_biased else None
    found = way(packed(lengths), None if biases is None else Watched(biases))(query, key, value, 1.0)
    # Measured: 2.1e-6 at most, of values up to 4
    torch.testing.assert_close(
        found.double(), by_hand(query, key, value, packed(lengths), biases), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("way", [each_sequence, flex])
def test_scores_are_scaled(way: Attention) -> None:
    query, key, value = drawn(sum(LENGTHS))
    found = way(packed(), None)(query, key, value, 0.25)
    expected = by_hand(0.25 * query, key, value, packed(), None)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)  # Measured: 4.6e-7


@pytest.mark.parametrize("way", [each_sequence, flex])
def test_no_sequence_sees_another(way: Attention) -> None:
    query, key, value = drawn(sum(LENGTHS))
    attend = way(packed(), None)
    before = attend(query, key, value, 1.0)
    key[5:], value[5:] = 1e3, -1e3
    after = attend(query, key, value, 1.0)
    assert torch.equal(before[:5], after[:5])
    assert not torch.equal(before[5:], after[5:])


@pytest.mark.parametrize("max_numbers", [1, 3 * 200, 3 * 200 * 7, 3 * 200 * 199])
def test_blocks_of_queries_give_what_one_block_gives(max_numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = drawn(sum(LENGTHS))
    bias = Watched(drawn_biases())
    attend = each_sequence(packed(), bias)
    whole = attend(query, key, value, 1.0)
    assert bias.asked == [(0, length, length) for length in LENGTHS]
    bias.asked.clear()
    monkeypatch.setattr(attention, "MAX_BIAS_NUMBERS", max_numbers)
    cut = attend(query, key, value, 1.0)
    assert len(bias.asked) > len(LENGTHS)
    assert all(end - start == 1 or 3 * (end - start) * length <= max_numbers for start, end, length in bias.asked)
    # Measured: 1.4e-6 at most
    torch.testing.assert_close(cut, whole, rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_biased", [False, True])
def test_a_cpu_attends_sequence_after_sequence(dtype: torch.dtype, is_biased: bool) -> None:
    way, reason = choose_attention(torch.device("cpu"), dtype, is_biased)
    assert way is each_sequence
    assert reason == "each_sequence: no variable-length kernel on cpu"


@pytest.mark.parametrize(
    ("dtype", "is_biased", "capability", "way", "reason"),
    [
        (torch.float32, False, (9, 0), each_sequence, "each_sequence: variable-length kernels are 16-bit only"),
        (
            *(torch.float16, False, (7, 5), each_sequence),
            "each_sequence: variable-length kernels need compute capability 8.0",
        ),
        (torch.bfloat16, False, (8, 0), varlen, "varlen: CUDA, 16-bit"),
        (torch.float16, False, (9, 0), varlen, "varlen: CUDA, 16-bit"),
        (torch.bfloat16, True, (8, 0), flex, "flex: CUDA, 16-bit, with a position bias"),
    ],
)
def test_a_gpu_attends_in_one_kernel_only_where_the_kernel_can(
    dtype: torch.dtype,
    is_biased: bool,
    capability: tuple[int, int],
    way: Attention,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_attention(torch.device("cuda:0"), dtype, is_biased) == (way, reason)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="these kernels are CUDA's, and there is no GPU here")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_biased", [False, True])
def test_one_kernel_for_all_sequences_gives_what_one_after_another_gives(
    dtype: torch.dtype, is_biased: bool
) -> None:
    batch = packed(device="cuda")
    query, key, value = (x.to("cuda", dtype) for x in drawn(sum(LENGTHS), 20, 64))
    query *= 64**-0.5
    bias = Watched(drawn_biases(20).to("cuda")) if is_biased else None
    way, _ = choose_attention(batch.tokens.device, dtype, biased=is_biased)
    assert way is (flex if is_biased else varlen)
    found = way(batch, bias)(query, key, value, 1.0)
    expected = each_sequence(batch, bias)(query.float(), key.float(), value.float(), 1.0)
    # Not measured on this project's machines yet: one unit in the last of bfloat16's 8 digits, for values up to 2
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=2**-7)
