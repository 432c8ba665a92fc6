"""Who is timed, in which order, and what becomes of one that fails; the engine and its peers agree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from models.catalogue import CATALOGUE, MINI
from models.untrained import write_untrained
from scripts.benchmarks.contenders import Contender, Task
from scripts.benchmarks.entries import choose_entries, start
from scripts.benchmarks.peers import Peers
from scripts.benchmarks.race import Race
from scripts.benchmarks.workload import sample
from tests.models.references import worst_relative_error

SEQUENCES = ["MKTAYIAK", "MK", "MKTA", "M"]


class Field:
    """Contenders that write down when they run, and how many sequences they get."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, int]] = []

    def contender(self, name: str, fails_from: int = 100, error: Exception | None = None) -> Contender:
        """Fails from that run on."""

        def run(sequences: Sequence[str]) -> list[np.ndarray]:
            self.runs.append((name, len(sequences)))
            if sum(who == name for who, _ in self.runs) > fails_from:
                raise error or RuntimeError("no\ncompiler")
            return [np.ones(2)] * len(sequences)

        return run

    def peak(self) -> float:
        self.runs.append(("peak", 0))
        return 1.0


def test_contenders_take_turns_after_a_short_untimed_run() -> None:
    field, race = Field(), Race()
    race.run({name: field.contender(name) for name in ("packed", "peer")}, SEQUENCES, "cpu", 2, field.peak)
    in_turn = [("peak", 0), ("packed", 4), ("peer", 4)]
    assert field.runs == [("packed", 2), ("peer", 2), *in_turn, *in_turn]
    assert {name: len(seconds) for name, seconds in race.seconds.items()} == {"packed": 2, "peer": 2}
    assert len(race.outputs["peer"]) == 4


@pytest.mark.parametrize("fails_from", [0, 1, 2])
def test_a_peer_that_fails_is_out_and_told(fails_from: int) -> None:
    field, race = Field(), Race()
    contenders = {
        "packed": field.contender("packed"),
        "torch-compile": field.contender("torch-compile", fails_from),
    }
    race.run(contenders, SEQUENCES, "cpu", 3, field.peak)
    assert race.failures == {"torch-compile": "RuntimeError: no compiler"}
    assert race.seconds.keys() == {"packed"}
    assert sum(who == "torch-compile" for who, _ in field.runs) == fails_from + 1


def test_a_peer_that_lacks_a_package_does_not_install() -> None:
    field, race = Field(), Race()
    missing = field.contender("peer", 0, ImportError("no module named 'flash_attn'"))
    race.run({"packed": field.contender("packed"), "peer": missing}, SEQUENCES, "cpu", 1, field.peak)
    assert race.failures == {"peer": "does not install here: no module named 'flash_attn'"}


def test_the_engine_may_not_fail() -> None:
    field = Field()
    with pytest.raises(RuntimeError, match="compiler"):
        Race().run({"packed": field.contender("packed", 1)}, SEQUENCES, "cpu", 1, field.peak)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("mini")
    write_untrained(folder, MINI, seed=1)
    return Task(folder, MINI, "cpu", "fp32", budget_tokens=300)


def test_in_fp32_every_contender_has_the_same_means(task: Task) -> None:
    sequences = [*sample(5, 150, seed=1), "MUZOBXK"]
    entries = choose_entries(["native"], ["transformers-fp32", "extract"], task)
    peers = Peers(task)
    expected, *others = [start(entry, task, peers)(sequences) for entry in entries.values()]
    for found in others:
        for one, other in zip(found, expected, strict=True):
            assert worst_relative_error(one[None], other[None]) < 1e-5  # Measured: 1.6e-6


def test_sorted_batches_are_handed_back_in_order(task: Task) -> None:
    sequences = sample(5, 150, seed=1)
    entries = choose_entries(["native"], ["transformers-bf16-best"], task)
    peers = Peers(task)
    expected, *others = [start(entry, task, peers)(sequences) for entry in entries.values()]
    assert len(others) == 4
    for found in others:
        distances = [[np.linalg.norm(one - other) for other in expected] for one in found]
        assert np.argmin(distances, 1).tolist() == [0, 1, 2, 3, 4]


def test_all_peers_are_those_of_the_family_and_the_device(task: Task) -> None:
    on_cpu = choose_entries(["native", "torch"], ["all"], task)
    sizes = [f"transformers-bf16-sorted-{size}" for size in (1, 2, 4, 8)]
    assert list(on_cpu) == [
        *("packed", "packed-torch", "transformers-fp32", "transformers-bf16", *sizes, "extract"),
    ]
    on_cuda = choose_entries(["native"], ["all"], Task(Path(), MINI, "cuda:0"))
    assert on_cuda.keys() >= on_cpu.keys() - {"packed-torch"}
    assert on_cuda.keys() >= {"transformers-sdpa", "transformers-fa2-sorted-8", "torch-compile-sorted-8"}
    of_t5 = choose_entries(["native"], ["all"], Task(Path(), CATALOGUE["prot_t5"], "cpu"))
    assert of_t5.keys() == on_cpu.keys() - {"packed-torch", "extract"}
