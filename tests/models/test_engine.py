"""From sequences to arrays: what one item's misfortune does to the others, precisions, means."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from models.backends.choice import choose
from models.batcher import Batcher, Limits
from models.catalogue import MINI, Model
from models.engine import Encoder, Engine, Item, OutputDtype
from models.esm2 import Esm2
from models.failures import DeviceLost, OutOfMemory
from models.guard import EmbeddingError
from models.packing import Pack
from models.planning import cost
from tests.models.conftest import SMALL_T5, Folders
from tests.models.references import embed, random_sequence, worst_relative_error

POISON = "W"
EIGHT = ["MKV", "A" * 30, "L", f"MK{POISON}LV", "GGGG", "DEK", "S" * 100, "PP"]
POISONED = 3


class Position:
    """An encoder that one can compute in one's head: a residue's vector is full of its number, from 1 on."""

    def encode(self, pack: Pack) -> Tensor:
        return pack.positions.float().unsqueeze(1).repeat(1, MINI.dim)


class Spoilt:
    """An encoder that does something to the hidden states of every sequence with the poison in it."""

    def __init__(self, inner: Encoder, poison: int, spoil: Callable[[Tensor], Tensor]) -> None:
        self.inner = inner
        self.poison = poison
        self.spoil = spoil
        self.batches: list[tuple[int, ...]] = []

    def encode(self, pack: Pack) -> Tensor:
        self.batches.append(pack.lengths)
        hidden = self.inner.encode(pack)
        for start, end in pack.spans():
            if (pack.tokens[start:end] == self.poison).any():
                hidden[start:end] = self.spoil(hidden[start:end])
        return hidden


def fail(hidden: Tensor) -> Tensor:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def become_nan_once(hidden: Tensor) -> Tensor:
    hidden[2, 5] = float("nan")
    return hidden


def overflow(hidden: Tensor) -> Tensor:
    return hidden * 1e6


def ask_torch_for_too_much() -> None:
    torch.empty(1 << 50)  # four petabytes: the error is torch's own, in its own words


def as_cuda_says() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def as_a_kernel_says() -> None:
    raise MemoryError


class Small:
    """An encoder whose memory holds so many tokens; it keeps the number of tokens of every pack."""

    def __init__(self, inner: Encoder, num_tokens: int, complain: Callable[[], None] = as_cuda_says) -> None:
        self.inner = inner
        self.num_tokens = num_tokens
        self.complain = complain
        self.packs: list[int] = []

    def encode(self, pack: Pack) -> Tensor:
        self.packs.append(sum(pack.lengths))
        if sum(pack.lengths) > self.num_tokens:
            self.complain()
        return self.inner.encode(pack)


def spoil_with(engine: Engine, spoil: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> Spoilt:
    spoilt = Spoilt(engine.encoder, int(engine.table.ids[ord(POISON)]), spoil)
    monkeypatch.setattr(engine, "encoder", spoilt)
    return spoilt


def items(pooled: bool = True, dtype: OutputDtype = "float32") -> list[Item]:
    return [Item(sequence, pooled, dtype) for sequence in EIGHT]


def assert_others_are(
    found: list[np.ndarray | EmbeddingError], expected: list[np.ndarray | EmbeddingError]
) -> None:
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        if index != POISONED:
            assert isinstance(one, np.ndarray)
            assert isinstance(other, np.ndarray)
            assert worst_relative_error(one, other) <= 1e-5  # Measured: 6.1e-7; the batches are others


@pytest.mark.parametrize("pooled", [True, False])
def test_a_poisoned_sequence_fails_alone_in_a_batch_of_eight(
    mini: Engine, monkeypatch: pytest.MonkeyPatch, pooled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    expected = mini.embed(items(pooled))
    spoilt = spoil_with(mini, fail, monkeypatch)
    found = mini.embed(items(pooled))
    assert isinstance(found[POISONED], EmbeddingError)
    assert "the model failed on this sequence (RuntimeError)" in str(found[POISONED])
    assert "illegal memory access" in caplog.text
    assert_others_are(found, expected)
    # It is looked for by halves: 8, 4, 2 (good), 2, 1 (good), 1 (bad), 4 (good)
    assert [len(lengths) for lengths in spoilt.batches] == [8, 4, 2, 2, 1, 1, 4]


def test_an_error_behind_which_the_device_is_silent_is_a_lost_device(
    mini: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_and_lose_the_device(hidden: torch.Tensor) -> torch.Tensor:
        monkeypatch.setattr(mini, "device", torch.device("cuda:99"))
        return fail(hidden)

    spoil_with(mini, fail_and_lose_the_device, monkeypatch)
    with pytest.raises(DeviceLost, match="cuda:99 is lost"):
        mini.embed(items(True))


@pytest.mark.parametrize("complain", [ask_torch_for_too_much, as_cuda_says, as_a_kernel_says])
def test_a_batch_that_memory_does_not_hold_is_told_of_as_such(
    mini: Engine, monkeypatch: pytest.MonkeyPatch, complain: Callable[[], None]
) -> None:
    small = Small(mini.encoder, 50, complain)
    monkeypatch.setattr(mini, "encoder", small)
    with pytest.raises(OutOfMemory, match="148 residues are more than the memory of cpu holds"):
        mini.embed(items())
    assert len(small.packs) == 1  # smaller batches are the batcher's business
    assert isinstance(mini.embed(items()[:1])[0], np.ndarray)


@pytest.mark.parametrize("complain", [ask_torch_for_too_much, as_cuda_says, as_a_kernel_says])
def test_a_sequence_that_memory_does_not_hold_is_told_its_length(
    mini: Engine, monkeypatch: pytest.MonkeyPatch, complain: Callable[[], None]
) -> None:
    monkeypatch.setattr(mini, "encoder", Small(mini.encoder, 50, complain))
    with pytest.raises(OutOfMemory, match="100 residues are more than the memory of cpu holds"):
        mini.embed([Item("S" * 100, True, "float32")])


async def test_a_sequence_that_memory_does_not_hold_keeps_nothing_of_what_was_tried(
    mini: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error is a result, which lives until all of its call is answered."""
    tried: list[weakref.ref[Tensor]] = []

    def complain() -> None:
        activations = torch.empty(1000)
        tried.append(weakref.ref(activations))
        as_cuda_says()

    monkeypatch.setattr(mini, "encoder", Small(mini.encoder, 50, complain))
    batcher: Batcher[Item, np.ndarray] = Batcher([mini.embed], mini.cost, Limits(mini.budget))
    gc.disable()  # what only the collector finds is kept for long
    try:
        (outcome,) = await batcher.run([Item("S" * 100, True, "float32")])
        assert isinstance(outcome.result, OutOfMemory)
        assert [one() for one in tried] == [None]
    finally:
        gc.enable()
        await batcher.close()


def test_a_device_that_is_silent_behind_want_of_memory_is_lost(
    mini: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def complain_and_lose_the_device() -> None:
        monkeypatch.setattr(mini, "device", torch.device("cuda:99"))
        as_cuda_says()

    monkeypatch.setattr(mini, "encoder", Small(mini.encoder, 50, complain_and_lose_the_device))
    with pytest.raises(DeviceLost, match="cuda:99 is lost"):
        mini.embed(items())


async def test_what_memory_does_not_hold_at_once_is_done_in_parts(
    mini: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = mini.embed(items())
    small = Small(mini.encoder, 50)
    monkeypatch.setattr(mini, "encoder", small)
    batcher: Batcher[Item, np.ndarray] = Batcher([mini.embed], mini.cost, Limits(mini.budget))
    found = [outcome.result for outcome in await batcher.run(items())]
    await batcher.close()
    too_long = EIGHT.index("S" * 100)
    assert str(found[too_long]) == "100 residues are more than the memory of cpu holds"
    for index in set(range(len(EIGHT))) - {too_long}:
        one, other = found[index], expected[index]
        assert isinstance(one, np.ndarray)
        assert isinstance(other, np.ndarray)
        assert worst_relative_error(one, other) <= 1e-5  # Measured: 5.8e-7; the batches are others
    assert small.packs[0] == 164
    assert sum(tokens for tokens in small.packs if tokens <= 50) == 164 - 102  # each of the others once
    assert batcher.statistics.num_split == sum(tokens > 50 and tokens != 102 for tokens in small.packs)


@pytest.mark.parametrize("pooled", [True, False])
def test_an_output_that_is_not_finite_is_told_of_its_sequence_alone(
    mini: Engine, monkeypatch: pytest.MonkeyPatch, pooled: bool
) -> None:
    expected = mini.embed(items(pooled))
    spoil_with(mini, become_nan_once, monkeypatch)
    found = mini.embed(items(pooled))
    assert str(found[POISONED]) == "the model's output is not finite for this sequence"
    assert_others_are(found, expected)


@pytest.mark.parametrize("pooled", [True, False])
def test_what_does_not_fit_float16_is_told_of_its_sequence_alone(
    mini: Engine, monkeypatch: pytest.MonkeyPatch, pooled: bool
) -> None:
    spoil_with(mini, overflow, monkeypatch)
    found = mini.embed(items(pooled, "float16"))
    assert str(found[POISONED]) == "the output does not fit float16; ask for float32"
    assert all(isinstance(result, np.ndarray) for index, result in enumerate(found) if index != POISONED)
    (as_float32,) = mini.embed([items(pooled, "float32")[POISONED]])
    assert isinstance(as_float32, np.ndarray)
    assert np.abs(as_float32).max() > 65504


def test_a_letter_without_a_token_fails_alone(mini: Engine) -> None:
    found = mini.embed([Item(sequence, True, "float32") for sequence in ("MKV", "MJV", "LLL")])
    assert str(found[1]) == "'J' at position 2 is not in the model's vocabulary"
    assert isinstance(found[0], np.ndarray)
    assert isinstance(found[2], np.ndarray)


def test_a_batch_of_bad_letters_alone_gives_errors_alone(mini: Engine) -> None:
    assert all(isinstance(result, EmbeddingError) for result in mini.embed([Item("J", True, "float32")] * 3))


def test_nothing_asked_is_nothing_answered(mini: Engine) -> None:
    assert mini.embed([]) == []


def test_an_empty_sequence_is_an_error_of_its_own(mini: Engine) -> None:
    found = mini.embed([Item("", True, "float32"), Item("MKV", True, "float32")])
    assert isinstance(found[0], EmbeddingError)
    assert isinstance(found[1], np.ndarray)


def test_residues_are_counted_from_the_first_letter_to_the_last(
    mini: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mini, "encoder", Position())
    rows = embed(mini, ["MKV", "A", "LLLLL"])
    assert [row[:, 0].tolist() for row in rows] == [[1, 2, 3], [1], [1, 2, 3, 4, 5]]
    means = embed(mini, ["MKV", "A", "LLLLL"], pooled=True)
    assert [mean[0] for mean in means] == [2, 1, 3]


def test_specials_of_prot_t5_are_left_out_too(small_t5: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_t5, "encoder", Position())
    rows = embed(small_t5, ["MKV", "A"])
    assert [row[:, 0].tolist() for row in rows] == [[0, 1, 2], [0]]
    assert [mean[0] for mean in embed(small_t5, ["MKV", "A"], pooled=True)] == [1, 0]


@pytest.mark.parametrize("family", ["mini", "small_t5"])
def test_a_pooled_embedding_is_the_mean_of_the_residues(family: str, request: pytest.FixtureRequest) -> None:
    engine: Engine = request.getfixturevalue(family)
    sequences = [random_sequence(length, seed=length) for length in (1, 50, 400)]
    means = np.stack([rows.mean(0, dtype=np.float64) for rows in embed(engine, sequences)])
    pooled = np.stack(embed(engine, sequences, pooled=True))
    assert worst_relative_error(pooled, means) <= 2e-6  # Measured: 3.3e-7


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("pooled", [True, False])
def test_results_have_the_asked_shape_and_precision(mini: Engine, pooled: bool, dtype: OutputDtype) -> None:
    (found,) = mini.embed([Item("MKVLA", pooled, dtype)])
    assert isinstance(found, np.ndarray)
    assert found.dtype == dtype
    assert found.shape == ((MINI.dim,) if pooled else (5, MINI.dim))


def test_float16_is_float32_rounded(mini: Engine) -> None:
    (half,) = mini.embed([Item("MKVLA", False, "float16")])
    assert isinstance(half, np.ndarray)
    (full,) = embed(mini, ["MKVLA"])
    assert np.array_equal(half, full.astype(np.float16))


def test_one_batch_may_ask_for_different_things(mini: Engine) -> None:
    found = mini.embed([Item("MKV", True, "float16"), Item("MKV", False, "float32"), Item("MKV", True, "float32")])
    assert [(r.dtype.name, r.shape) for r in found if isinstance(r, np.ndarray)] == [
        ("float16", (MINI.dim,)),
        ("float32", (3, MINI.dim)),
        ("float32", (MINI.dim,)),
    ]


def test_an_item_costs_its_tokens_with_the_specials(mini: Engine, small_t5: Engine) -> None:
    item = Item("A" * 100, True, "float32")
    assert mini.cost(item) == cost(102, 144)
    assert small_t5.cost(item) == cost(101, 64)


def test_a_sequence_is_answered_twice_the_same(mini: Engine) -> None:
    once, again = embed(mini, ["MKTAYIAK"])[0], embed(mini, ["MKTAYIAK"])[0]
    assert np.array_equal(once, again)


def test_an_asked_precision_is_kept(folders: Folders) -> None:
    engine = Engine(folders.of(MINI), MINI, precision="fp32")
    assert engine.choice.precision == "fp32"
    assert engine.choice.precision_reason == "asked for by PRECISION"


def test_an_asked_backend_is_kept(folders: Folders) -> None:
    wanted = choose(torch.device("cpu"), "esm2", "bf16", use_kernels=False)
    engine = Engine(folders.of(MINI), MINI, precision="fp32", choice=wanted)
    assert engine.choice is wanted
    assert isinstance(engine.encoder, Esm2)
    assert engine.encoder.backend is wanted.backend


@pytest.mark.parametrize("model", [MINI, SMALL_T5], ids=lambda model: model.name)
def test_two_shares_side_by_side_give_the_numbers_of_the_whole(model: Model, folders: Folders) -> None:
    whole, shared = (Engine(folders.of(model), model) for _ in range(2))
    if not whole.divides:
        pytest.skip("nothing here divides: it takes two cores and our own kernels")
    batches = [
        [Item(random_sequence(length, seed=length), False, "float32") for length in (first, 40, 7)]
        for first in range(100, 3000, 145)  # tables of positions grow meanwhile
    ]
    with ThreadPoolExecutor(shared.num_callers) as threads:
        found = list(threads.map(shared.embed_share, batches))
    for batch, results in zip(batches, found, strict=True):
        for one, other in zip(results, whole.embed(batch), strict=True):
            assert isinstance(one, np.ndarray)
            assert isinstance(other, np.ndarray)
            assert np.array_equal(one, other)
