"""torch's attention inside the sequences of a pack, several ways; one is chosen at start-up.

Each way takes a pack once and gives the function that every layer calls. Shapes: T tokens in a pack, B sequences,
H heads, K head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.packing import Pack
from models.positions import PositionBias

# (query, key, value, scale): softmax(scale query key + bias) value of every token over those of its own sequence;
# each of the three and the result (T, H, K)
Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]
Attention = Callable[[Pack, PositionBias | None], Attend]

# A block of queries is cut so that its biased scores, H * block * length numbers, stay below this
MAX_BIAS_NUMBERS = 16 * 1024 * 1024
FLEX_BLOCK = 128  # rows of a block of FlexAttention's mask


def each_sequence(pack: Pack, bias: PositionBias | None) -> Attend:
    """Sequence after sequence by torch's SDPA. Runs everywhere; memory grows with length, not its square."""

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        out = torch.empty_like(query)
        for start, end in pack.spans():
            # (1, H, L, K), as SDPA wants it
            q, k, v = (x[start:end].transpose(0, 1).unsqueeze(0) for x in (query, key, value))
            length, num_heads = end - start, query.shape[1]
            block = length if bias is None else max(1, min(length, MAX_BIAS_NUMBERS // (num_heads * length)))
            for first in range(0, length, block):
                last = min(first + block, length)
                mask = None if bias is None else bias.block(first, last, length).unsqueeze(0)
                part = F.scaled_dot_product_attention(q[:, :, first:last], k, v, attn_mask=mask, scale=scale)
                out[start + first : start + last] = part[0].transpose(0, 1)
        return out

    return attend


def varlen(pack: Pack, bias: PositionBias | None) -> Attend:
    """All sequences in one kernel: FlashAttention's variable-length form. CUDA, 16-bit, no bias."""
    from torch.nn.attention.varlen import varlen_attn

    assert bias is None

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        starts, longest = pack.cu_seqlens, pack.max_length
        out = varlen_attn(query, key, value, starts, starts, longest, longest, scale=scale)
        assert isinstance(out, Tensor)
        return out

    return attend


def flex(pack: Pack, bias: PositionBias | None) -> Attend:
    """All sequences in one kernel that torch compiles for it: FlexAttention, with a bias. CUDA, 16-bit.

    Blocks of 128 x 128 scores that no sequence needs are left out. On other devices the same functions run
    uncompiled, over every score: for tests.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    num_rows = FLEX_BLOCK * -(-len(pack.tokens) // FLEX_BLOCK)  # a kernel is compiled for a number of blocks
    device = pack.tokens.device
    rows = torch.arange(num_rows, device=device)
    owner = torch.bucketize(
        rows, pack.cu_seqlens[1:], right=True
    )  # rows behind the last token have one of their own

    def is_same_sequence(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return owner[query] == owner[key]

    mask = create_block_mask(
        is_same_sequence, None, None, num_rows, num_rows, device=str(device), BLOCK_SIZE=FLEX_BLOCK
    )
    table, most = (None, 0) if bias is None else (bias.by_distance, bias.longest - 1)

    def add_bias(score: Tensor, _batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert table is not None
        return score + table[head, (key - query).clamp(-most, most) + most]

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        rest = num_rows - len(query)
        q, k, v = (F.pad(x, (0, 0, 0, 0, 0, rest)).transpose(0, 1).unsqueeze(0) for x in (query, key, value))
        run = _compiled_flex() if device.type == "cuda" else _plain_flex()
        out = run(q, k, v, score_mod=None if table is None else add_bias, block_mask=mask, scale=scale)
        return out[0].transpose(0, 1)[: len(query)]

    return attend


def _plain_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(_plain_flex(), dynamic=True)


def choose_attention(device: torch.device, dtype: torch.dtype, biased: bool) -> tuple[Attention, str]:
    """The way for a device, a precision and a family, with the reason in words."""
    if device.type != "cuda":
        return each_sequence, f"each_sequence: no variable-length kernel on {device.type}"
    if dtype == torch.float32:
        return each_sequence, "each_sequence: variable-length kernels are 16-bit only"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return each_sequence, "each_sequence: variable-length kernels need compute capability 8.0"
    if biased:
        return flex, "flex: CUDA, 16-bit, with a position bias"
    return varlen, "varlen: CUDA, 16-bit"
