"""What a runner does without a server: what is checked before a port opens, and what is loaded."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import bentoml
import pytest
import torch

from models import replicas
from models.backends.portable import Portable
from models.batcher import Limits
from models.catalogue import CATALOGUE, MINI
from models.replicas import load_engines
from models.runner import QUEUE_BATCHES, RunnerOptions, fault_of
from scripts.local_service import ROOT
from tests.models.conftest import Folders
from tests.models.damage import cut_off
from tests.models.stores import own_store

OPTIONS = RunnerOptions(
    precision="auto",
    use_kernels=True,
    batch_tokens=None,
    batch_items=None,
    batch_wait_s=0.0,
    queue_tokens=None,
    num_gpus=0,
    timeout_s=1,
)


@pytest.fixture
def stored(tmp_path: Path, folders: Folders) -> Iterator[bentoml.Model]:
    """esm2_mini in a store of its own."""
    with own_store(tmp_path / "models"):
        with bentoml.models.create("esm2_mini:one") as entry:
            shutil.copytree(folders.of(MINI), entry.path, dirs_exist_ok=True)
        yield bentoml.models.get("esm2_mini:one")


def test_a_good_checkpoint_lets_the_runner_start(stored: bentoml.Model) -> None:
    assert fault_of(MINI, stored) is None


def test_a_bad_checkpoint_is_told_of_in_one_line(stored: bentoml.Model) -> None:
    cut_off(Path(stored.path), 1)
    message = fault_of(MINI, stored)
    assert message is not None
    assert message.startswith("esm2_mini:one: ")
    assert "is truncated" in message
    assert "\n" not in message


def test_another_models_checkpoint_is_told_of(stored: bentoml.Model) -> None:
    assert "is not esm2_t6_8M: num_layers is 4, not 6" in str(fault_of(CATALOGUE["esm2_t6_8M"], stored))


def test_a_runner_computes_as_it_is_told(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("give_freed_memory_back", "keep_freed_memory"):  # these are for the whole process
        monkeypatch.setattr(replicas, name, lambda: None)
    monkeypatch.setattr(replicas, "usable_cores", torch.get_num_threads)
    options = dataclasses.replace(OPTIONS, precision="bf16", use_kernels=False)
    (engine,) = load_engines(folders.of(MINI), MINI, options)
    assert engine.choice.precision == "bf16"
    assert isinstance(engine.choice.backend, Portable)


def test_a_runner_without_its_gpus_does_not_start(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    options = dataclasses.replace(OPTIONS, num_gpus=2)
    with pytest.raises(RuntimeError, match="RUNNER_GPUS reserves 2 GPUs, esm2_mini sees 1"):
        load_engines(folders.of(MINI), MINI, options)


def test_unless_told_otherwise_a_runner_takes_what_suits_its_device() -> None:
    expected = Limits(budget=4096, max_items=sys.maxsize, max_wait_s=0.0, max_queue_cost=QUEUE_BATCHES * 4096)
    assert OPTIONS.limits(4096) == expected


def test_a_runner_keeps_to_the_limits_it_is_given() -> None:
    options = dataclasses.replace(OPTIONS, batch_tokens=100, batch_items=7, batch_wait_s=0.02, queue_tokens=5000)
    assert options.limits(4096) == Limits(budget=100, max_items=7, max_wait_s=0.02, max_queue_cost=5000)


def test_the_queue_is_as_long_as_its_batches_make_it() -> None:
    options = dataclasses.replace(OPTIONS, batch_tokens=100)
    assert options.limits(4096).max_queue_cost == QUEUE_BATCHES * 100


def test_a_runner_without_a_device_ends_behind_what_it_had_to_say() -> None:
    code = """
import asyncio, logging
from models.catalogue import MINI
from models.runner import EXIT_AFTER_S, exit_soon

async def main():
    logging.basicConfig()
    exit_soon(MINI)
    print("said behind it", flush=True)
    await asyncio.sleep(EXIT_AFTER_S / 4)
    print("and later", flush=True)
    await asyncio.sleep(60)
    print("too late", flush=True)

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert done.stdout == "said behind it\nand later\n"
    assert "esm2_mini has lost its last device" in done.stderr
