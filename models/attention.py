"""Attention inside the sequences of a pack. One function, several backends, chosen once at start-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.packing import Pack

# (start, end, length) -> (H, end - start, length): what is added to the scores of queries start..end
Bias = Callable[[int, int, int], Tensor]

# A block of queries is cut so that its biased scores, H * block * length numbers, stay below this
MAX_BIAS_NUMBERS = 16 * 1024 * 1024


class Attention(Protocol):
    """Softmax attention of every token over the tokens of its own sequence.

    query, key, value: (T, H, K); the result is (T, H, K) too. Scores are multiplied by `scale`.
    """

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, pack: Pack, bias: Bias | None, scale: float
    ) -> Tensor: ...


def attend_each(query: Tensor, key: Tensor, value: Tensor, pack: Pack, bias: Bias | None, scale: float) -> Tensor:
    """Sequence after sequence by torch's SDPA. Runs everywhere; memory grows with length, not its square."""
    out = torch.empty_like(query)
    for start, end in pack.spans():
        # (1, H, L, K), as SDPA wants it
        q, k, v = (x[start:end].transpose(0, 1).unsqueeze(0) for x in (query, key, value))
        length, num_heads = end - start, query.shape[1]
        block = length if bias is None else max(1, min(length, MAX_BIAS_NUMBERS // (num_heads * length)))
        for first in range(0, length, block):
            last = min(first + block, length)
            mask = None if bias is None else bias(first, last, length).unsqueeze(0)
            part = F.scaled_dot_product_attention(q[:, :, first:last], k, v, attn_mask=mask, scale=scale)
            out[start + first : start + last] = part[0].transpose(0, 1)
    return out


def attend_varlen(
    query: Tensor, key: Tensor, value: Tensor, pack: Pack, bias: Bias | None, scale: float
) -> Tensor:
    """All sequences in one kernel: FlashAttention's variable-length form. CUDA, 16-bit, no bias."""
    from torch.nn.attention.varlen import varlen_attn

    assert bias is None
    longest = pack.max_length
    out = varlen_attn(query, key, value, pack.cu_seqlens, pack.cu_seqlens, longest, longest, scale=scale)
    assert isinstance(out, Tensor)
    return out


def choose_attention(device: torch.device, dtype: torch.dtype, biased: bool) -> tuple[Attention, str]:
    """The backend for a device, a precision and a family, with the reason in words."""
    if device.type != "cuda":
        return attend_each, f"attend_each: no variable-length kernel on {device.type}"
    if dtype == torch.float32:
        return attend_each, "attend_each: variable-length kernels are 16-bit only"
    if biased:
        return attend_each, "attend_each: variable-length kernels take no position bias"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return attend_each, "attend_each: variable-length kernels need compute capability 8.0"
    return attend_varlen, "attend_varlen: CUDA, 16-bit"
