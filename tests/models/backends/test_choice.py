"""Which backend and precision a device gets, and why."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

from models.attention import each_sequence, flex, varlen
from models.backends.choice import Precision, choose, choose_precision
from models.backends.native import Native
from models.backends.portable import Portable
from models.catalogue import Family
from models.kernels import library
from models.kernels.library import BUILDS
from tests.models.backends.variants import CPU

GPU = torch.device("cuda:0")
FAMILIES: tuple[Family, Family] = ("esm2", "t5")
NO_KERNEL = "each_sequence: no variable-length kernel on cpu"


@pytest.mark.parametrize(
    ("flags", "precision", "reason"),
    [
        ({"avx512_bf16": True}, "bf16", "the processor multiplies bfloat16 (AVX512-BF16 or AMX)"),
        ({"amx_bf16": True}, "bf16", "the processor multiplies bfloat16 (AVX512-BF16 or AMX)"),
        ({"avx2": True, "avx512_bf16": False}, "fp32", "no bfloat16 units on this cpu"),
        ({}, "fp32", "no bfloat16 units on this cpu"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_auto_asks_the_processor(
    monkeypatch: pytest.MonkeyPatch, family: Family, flags: dict[str, bool], precision: str, reason: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert choose_precision(CPU, family, "auto") == (precision, reason)


@pytest.mark.parametrize(
    ("capability", "family", "precision"),
    [
        ((7, 5), "esm2", "fp32"),
        ((7, 5), "t5", "fp32"),
        ((8, 0), "esm2", "fp16"),
        ((9, 0), "esm2", "fp16"),
        ((8, 0), "t5", "bf16"),  # never fp16: T5's hidden layers may leave its range
        ((9, 0), "t5", "bf16"),
    ],
)
def test_auto_asks_the_gpu_and_the_family(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], family: Family, precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found, reason = choose_precision(GPU, family, "auto")
    assert found == precision
    assert reason


@pytest.mark.parametrize("wanted", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_asked_precision_is_kept(family: Family, wanted: Precision) -> None:
    choice = choose(CPU, family, wanted)
    assert choice.precision == wanted
    assert choice.precision_reason == "asked for by PRECISION"
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert choice.backend.dtype == dtypes[wanted]


def test_bf16_on_a_processor_that_multiplies_it_is_for_our_kernels(
    kernels: Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = BUILDS[kernels.kernels.instructions]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(build.needs, True))
    for family in FAMILIES:
        choice = choose(CPU, family, "auto")
        assert choice.precision == "bf16"
        assert isinstance(choice.backend, Native)
        assert choice.backend.kernels.instructions == build.name
        assert choice.backend_reason == choice.backend.description == f"own kernels, {build.name}"


@pytest.mark.parametrize("wanted", ["fp32", "fp16"])
def test_our_kernels_are_for_bf16_alone(wanted: Precision) -> None:
    choice = choose(CPU, "esm2", wanted)
    assert isinstance(choice.backend, Portable)
    assert choice.backend_reason == NO_KERNEL


@pytest.mark.parametrize("family", FAMILIES)
def test_our_kernels_may_be_switched_off(family: Family) -> None:
    choice = choose(CPU, family, "bf16", use_kernels=False)
    assert isinstance(choice.backend, Portable)
    assert choice.backend.description == "torch, each_sequence"
    assert choice.backend_reason == NO_KERNEL


def test_a_gpu_never_gets_our_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for family, way in zip(FAMILIES, (varlen, flex), strict=True):
        choice = choose(GPU, family, "bf16")
        assert isinstance(choice.backend, Portable)
        assert choice.backend.device == GPU
        assert choice.backend.way is way
    assert isinstance(choose(GPU, "esm2", "fp32").backend, Portable)


def test_without_a_build_for_the_processor_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    choice = choose(CPU, "esm2", "bf16")
    assert isinstance(choice.backend, Portable)
    assert choice.backend.way is each_sequence
    assert choice.precision == "bf16"
    assert choice.backend_reason == f"{NO_KERNEL}; no kernels of our own: the processor has no AVX512-BF16"


def test_without_a_compiler_torch_computes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needs = BUILDS["AVX512-BF16"].needs
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(needs, True))
    monkeypatch.setattr(library, "SOURCE", tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(library, "compilers", lambda: [])
    choice = choose(CPU, "t5", "bf16")
    assert isinstance(choice.backend, Portable)
    assert choice.backend_reason.startswith(f"{NO_KERNEL}; no kernels of our own: no C compiler")
