"""A model store of a test's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models import ModelStore


@contextmanager
def own_store(folder: Path) -> Iterator[Path]:
    """While it lasts, BentoML keeps its models in the folder."""
    folder.mkdir()
    BentoMLContainer.model_store.set(ModelStore(folder))
    yield folder
    BentoMLContainer.model_store.reset()
