"""The real service in processes of its own, once on each way to a Redis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import redis

from scripts import import_model
from scripts.local_service import LocalService
from serving.redis import EmbeddedRedis
from tests.served.texts import TextService, serving_texts

# Precision is fixed so that the tests mean the same on every processor
SETTINGS = {"MODELS": "esm2_mini,esm2_t6_8M", "PRECISION": "fp32", "GATEWAY_WORKERS": "2"}
SEED = "7"


@dataclass(frozen=True)
class Served:
    """A running service: a client of it, and one of its Redis."""

    service: LocalService
    http: httpx.Client
    redis: redis.Redis

    @property
    def url(self) -> str:
        return self.service.url


@pytest.fixture(scope="session")
def stored_models() -> None:
    """Both models in the tests' own store; neither is trained."""
    import_model.main(["esm2_mini"])
    import_model.main(["esm2_t6_8M", "--random", "--seed", SEED])


@pytest.fixture(scope="session")
def served(
    redis_kind: str,
    stored_models: None,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    data_dir = tmp_path_factory.mktemp(f"served-{redis_kind}")
    environment = dict(SETTINGS)
    if redis_kind == "tcp":
        # A database of its own: its workers would take the jobs of tests of the queue
        address = request.getfixturevalue("tcp_redis_url").removesuffix("/0") + "/1"
        environment["REDIS_URL"] = address
    else:
        address = f"unix://{EmbeddedRedis.socket_path(data_dir)}"
    with (
        LocalService(data_dir, environment) as service,
        httpx.Client(base_url=service.url, timeout=120) as http,
        redis.Redis.from_url(address) as client,
    ):
        yield Served(service, http, client)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextService]:
    """The service with models of every kind."""
    with serving_texts(tmp_path_factory.mktemp("texts")) as served:
        yield served


@pytest.fixture
def data_dir_of(served: Served) -> Path:
    return served.service.log.parent
