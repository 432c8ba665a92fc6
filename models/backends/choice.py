"""Which backend and precision a device gets, with the reason in words: the one place where that is decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from models.attention import choose_attention
from models.backends.base import Backend
from models.backends.native import Native
from models.backends.portable import Portable
from models.catalogue import Family
from models.kernels.library import KernelsUnavailable, load

Precision = Literal["auto", "fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Both run equally fast; float16 rounds eight times finer, bfloat16 reaches further. See docs/decisions/0013
_CUDA_PRECISIONS: Mapping[Family, tuple[str, str]] = {
    "esm2": ("fp16", "float16 rounds finer than bfloat16, and ESM-2's activations fit it"),
    "t5": ("bf16", "T5's hidden layers may leave float16's range"),
}


@dataclass(frozen=True)
class Choice:
    """precision: "fp32", "bf16" or "fp16"."""

    backend: Backend
    precision: str
    precision_reason: str
    backend_reason: str


def choose(device: torch.device, family: Family, wanted: Precision = "auto", use_kernels: bool = True) -> Choice:
    """The backend for a device and a family."""
    precision, precision_reason = choose_precision(device, family, wanted)
    dtype = DTYPES[precision]
    attention, reason = choose_attention(device, dtype, biased=family == "t5")
    portable = Choice(Portable(device, dtype, attention), precision, precision_reason, reason)
    if device.type != "cpu" or precision != "bf16" or not use_kernels:
        return portable
    try:
        native = Native(load())
    except KernelsUnavailable as error:
        return Choice(portable.backend, precision, precision_reason, f"{reason}; no kernels of our own: {error}")
    return Choice(native, precision, precision_reason, native.description)


def choose_precision(device: torch.device, family: Family, wanted: Precision) -> tuple[str, str]:
    """Precision of the products, with the reason in words."""
    if wanted != "auto":
        return wanted, "asked for by PRECISION"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "fp32", "the GPU has no bfloat16 units"
        return _CUDA_PRECISIONS[family]
    if device.type == "cpu" and _cpu_multiplies_bf16():
        return "bf16", "the processor multiplies bfloat16 (AVX512-BF16 or AMX)"
    return "fp32", f"no bfloat16 units on this {device.type}"


def _cpu_multiplies_bf16() -> bool:
    """Whether 16-bit products are faster than 32-bit ones here, by the processor's own flags."""
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(flag)) for flag in ("avx512_bf16", "amx_bf16"))
