"""What a runner does without a server: what is checked before a port opens, and what is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import bentoml
import pytest
import torch

from models import runner
from models.backends.portable import Portable
from models.catalogue import CATALOGUE, MINI
from models.runner import RunnerOptions, load_engines, verify_stored
from tests.models.conftest import Folders
from tests.models.damage import cut_off
from tests.models.stores import own_store


@pytest.fixture
def stored(tmp_path: Path, folders: Folders) -> Iterator[bentoml.Model]:
    """esm2_mini in a store of its own."""
    with own_store(tmp_path / "models"):
        with bentoml.models.create("esm2_mini:one") as entry:
            shutil.copytree(folders.of(MINI), entry.path, dirs_exist_ok=True)
        yield bentoml.models.get("esm2_mini:one")


def test_a_good_checkpoint_lets_the_runner_start(stored: bentoml.Model) -> None:
    verify_stored(MINI, stored.tag)


def test_a_bad_checkpoint_stops_the_start_with_one_line(stored: bentoml.Model) -> None:
    cut_off(Path(stored.path), 1)
    with pytest.raises(SystemExit) as caught:
        verify_stored(MINI, stored.tag)
    message = str(caught.value.code)
    assert message.startswith("esm2_mini:one: ")
    assert "is truncated" in message
    assert "\n" not in message


def test_another_models_checkpoint_stops_the_start(stored: bentoml.Model) -> None:
    with pytest.raises(SystemExit, match="is not esm2_t6_8M: num_layers is 4, not 6"):
        verify_stored(CATALOGUE["esm2_t6_8M"], stored.tag)


def test_a_runner_computes_as_it_is_told(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("give_freed_memory_back", "keep_freed_memory"):  # these are for the whole process
        monkeypatch.setattr(runner, name, lambda: None)
    monkeypatch.setattr(runner, "usable_cores", torch.get_num_threads)
    options = RunnerOptions("bf16", use_kernels=False, batch_tokens=None, num_gpus=0, timeout_s=1)
    (engine,) = load_engines(folders.of(MINI), MINI, options)
    assert engine.choice.precision == "bf16"
    assert isinstance(engine.choice.backend, Portable)


def test_a_runner_without_its_gpus_does_not_start(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    options = RunnerOptions("auto", use_kernels=True, batch_tokens=None, num_gpus=2, timeout_s=1)
    with pytest.raises(RuntimeError, match="RUNNER_GPUS reserves 2 GPUs, esm2_mini sees 1"):
        load_engines(folders.of(MINI), MINI, options)
