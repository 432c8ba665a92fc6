"""The model that the broken services serve, and one service for the tests that leave it well."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scripts import import_model
from tests.chaos.running import MODEL, Running, running


@pytest.fixture(scope="session")
def stored_model() -> None:
    """In the tests' own store; it is not trained."""
    import_model.main([MODEL, "--random", "--seed", "7"])


@pytest.fixture(scope="session")
def shared_service(stored_model: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("chaos")) as service:
        yield service


@pytest.fixture
def shared(shared_service: Running) -> Iterator[Running]:
    """Two gateway workers, a runner, and a Redis of the service's own: well before the test and behind it."""
    shared_service.assert_well()
    yield shared_service
    shared_service.assert_well()
