"""Checkpoints of untrained weights, written once, and engines on them in float32."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from models.catalogue import CATALOGUE, MINI, Model
from models.engine import Engine
from models.untrained import write_untrained

# ProtT5 in everything but size; heads together are wider than the model, as no ESM-2's are
SMALL_T5 = dataclasses.replace(
    CATALOGUE["prot_t5"], name="small_t5", num_layers=3, dim=64, num_heads=4, head_dim=24, feed_forward_dim=160
)
# The real widths, two layers deep
WIDE_T5 = dataclasses.replace(CATALOGUE["prot_t5"], name="wide_t5", num_layers=2)
WIDE_ESM2 = dataclasses.replace(CATALOGUE["esm2_t33_650M"], name="wide_esm2", num_layers=2)
NARROW_ESM2 = dataclasses.replace(CATALOGUE["esm2_t6_8M"], name="narrow_esm2", num_layers=2)

SEED = 1


class Folders:
    """A folder of untrained weights for each row, written when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def of(self, model: Model) -> Path:
        folder = self._root / model.name
        if not folder.exists():
            folder.mkdir()
            write_untrained(folder, model, SEED)
        return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """To be read only; what changes one copies it first."""
    return Folders(tmp_path_factory.mktemp("untrained"))


@pytest.fixture(scope="session")
def mini(folders: Folders) -> Engine:
    return Engine(folders.of(MINI), MINI, precision="fp32")


@pytest.fixture(scope="session")
def small_t5(folders: Folders) -> Engine:
    return Engine(folders.of(SMALL_T5), SMALL_T5, precision="fp32")


@pytest.fixture
def checkpoint(folders: Folders, tmp_path: Path) -> Path:
    """A good checkpoint of esm2_mini, to be spoilt."""
    return Path(shutil.copytree(folders.of(MINI), tmp_path / "checkpoint"))
