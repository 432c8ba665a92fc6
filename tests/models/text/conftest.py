"""Text models are written once a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.models.text.checkpoints import write


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small model, by its name in tests/models/text/checkpoints.py."""
    parent = tmp_path_factory.mktemp("texts")
    return cache(lambda name: write(name, parent / name))
