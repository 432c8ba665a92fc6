"""What holds for every backend and precision: near float32, and the same whatever the company."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.catalogue import MINI, Model
from models.engine import Engine
from tests.models.backends.variants import VARIANTS, Variant, choice_of
from tests.models.conftest import NARROW_ESM2, SMALL_T5, WIDE_ESM2, WIDE_T5, Folders
from tests.models.references import embed, random_sequence, worst_cosine_distance

SMALL = {model.name: model for model in (MINI, NARROW_ESM2, SMALL_T5)}
WIDE = {model.name: model for model in (WIDE_ESM2, WIDE_T5)}
MODELS = SMALL | WIDE
LENGTHS = {
    **dict.fromkeys(SMALL, (1, 2, 33, 300, 1030, 7, 64, 520)),
    **dict.fromkeys(WIDE, (1, 2, 33, 130, 7, 64)),
}

# A CPU computes float16 slowly, and no model at its full width
CASES = [
    (model, variant) for model in MODELS for variant in VARIANTS if model in SMALL or variant != "portable-fp16"
]
HALF_CASES = [(model, variant) for model, variant in CASES if VARIANTS[variant].precision != "fp32"]
KERNEL_CASES = [(model, variant) for model, variant in CASES if VARIANTS[variant].build]


def drawn(model: str) -> list[str]:
    return [random_sequence(length, seed) for seed, length in enumerate(LENGTHS[model])]


@dataclass(frozen=True)
class Case:
    """Sequences embedded together, per residue."""

    variant: Variant
    engine: Engine
    sequences: list[str]
    together: list[np.ndarray]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, folders: Folders) -> Case:
    name, variant = request.param
    engine = Engine(
        folders.of(MODELS[name]), MODELS[name], choice=choice_of(VARIANTS[variant], MODELS[name].family)
    )
    return Case(VARIANTS[variant], engine, drawn(name), embed(engine, drawn(name)))


@pytest.fixture(scope="module")
def in_fp32(folders: Folders) -> Callable[[Model], list[np.ndarray]]:
    """The same by torch in float32, which test_esm2.py and test_t5.py compare with transformers and fair-esm."""

    @functools.cache
    def compute(name: str) -> list[np.ndarray]:
        return embed(Engine(folders.of(MODELS[name]), MODELS[name], precision="fp32"), drawn(name))

    return lambda model: compute(model.name)


def assert_same(case: Case, found: np.ndarray, expected: np.ndarray) -> None:
    """Bit for bit by our kernels; by torch's, whose sums are cut by the batch, as near as the precision allows."""
    if case.variant.build is not None:
        assert np.array_equal(found, expected)
        return
    # Measured: 3.7e-13 (fp32), 4.9e-6 (bf16), 2.2e-16 (fp16)
    assert worst_cosine_distance(found, expected) <= (1e-6 if case.variant.precision == "fp32" else 1e-4)


@pytest.mark.parametrize("case", HALF_CASES, indirect=True, ids="-".join)
def test_every_residue_is_near_float32_in_16_bits(
    case: Case, in_fp32: Callable[[Model], list[np.ndarray]]
) -> None:
    worst = max(map(worst_cosine_distance, case.together, in_fp32(case.engine.model)))
    assert worst <= 1e-4  # Measured: 4.7e-5 (bf16), 4.4e-5 (bf16 by our kernels), 8.3e-7 (fp16)


def test_a_sequence_alone_is_what_it_is_in_company(case: Case) -> None:
    for index in (0, 2, 3, 5):
        (alone,) = embed(case.engine, [case.sequences[index]])
        assert_same(case, alone, case.together[index])


def test_a_mean_alone_is_what_it_is_in_company(case: Case) -> None:
    together = embed(case.engine, case.sequences, pooled=True)
    for index in (2, 5):
        (alone,) = embed(case.engine, [case.sequences[index]], pooled=True)
        assert_same(case, alone, together[index])


def test_a_sequence_is_the_same_in_any_batch_and_place(case: Case) -> None:
    for order in ((5, 4, 3, 2, 1, 0), (2, 0, 5, 2, 3)):
        for index, found in zip(order, embed(case.engine, [case.sequences[i] for i in order]), strict=True):
            assert_same(case, found, case.together[index])


@pytest.mark.usefixtures("_threads_restored")
@pytest.mark.parametrize("case", KERNEL_CASES, indirect=True, ids="-".join)
def test_the_number_of_threads_changes_no_bit(case: Case) -> None:
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        for found, expected in zip(embed(case.engine, case.sequences), case.together, strict=True):
            assert np.array_equal(found, expected)


short = st.integers(1, 200)
long = st.sampled_from([510, 511, 512, 513, 600, 1022, 1023, 1024, 1300])


@pytest.fixture(scope="module", params=[name for name in VARIANTS if name.startswith("native")])
def minis(request: pytest.FixtureRequest, folders: Folders) -> tuple[Engine, Engine]:
    """esm2_mini by our kernels and by torch in float32."""
    choice = choice_of(VARIANTS[request.param], MINI.family)
    folder = folders.of(MINI)
    return Engine(folder, MINI, choice=choice), Engine(folder, MINI, precision="fp32")


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(lengths=st.lists(short, min_size=1, max_size=6), longer=st.lists(long, max_size=1), seed=st.integers(0, 99))
def test_batches_of_any_lengths_are_near_float32(
    minis: tuple[Engine, Engine], lengths: list[int], longer: list[int], seed: int
) -> None:
    by_kernels, in_fp32 = minis
    sequences = [random_sequence(length, seed + i) for i, length in enumerate(lengths + longer)]
    worst = max(map(worst_cosine_distance, embed(by_kernels, sequences), embed(in_fp32, sequences)))
    assert worst <= 1e-4  # Measured: 6.4e-5; 7.4e-5 among 184,458 residues
