"""Our kernels in each build that this processor runs, and the number of threads as a test wants it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from models.backends.native import Native
from models.kernels.library import BUILDS
from tests.models.backends.variants import native


@pytest.fixture(params=list(BUILDS))
def kernels(request: pytest.FixtureRequest) -> Native:
    """What uses this is run on each build."""
    return native(BUILDS[request.param])


@pytest.fixture
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
