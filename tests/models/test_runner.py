"""What a runner does without a server: the check of what is stored, before a port opens."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import bentoml
import pytest

from models.catalogue import CATALOGUE, MINI
from models.runner import verify_stored
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
