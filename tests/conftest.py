"""What several test folders share: a model store of their own, real Redis servers, the real service."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports bentoml: tests never touch the user's own model store, nor a hub
_HOME = tempfile.mkdtemp(prefix="pes-tests-bentoml-")
os.environ["BENTOML_HOME"] = _HOME
os.environ["BENTOML_DO_NOT_TRACK"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
for _name in ("MODELS", "REDIS_URL", "DATA_DIR", "PRECISION"):
    os.environ.pop(_name, None)

import redis

from serving.redis import EmbeddedRedis, find_server


def pytest_sessionfinish() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def embedded_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """The service's own Redis, running."""
    server = EmbeddedRedis(tmp_path_factory.mktemp("embedded"), max_memory_mb=256)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def tcp_redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A redis-server as an operator would run one: on TCP, with a password."""
    from scripts.local_service import free_port

    folder, port, password = tmp_path_factory.mktemp("tcp-redis"), free_port(), "correct-horse"
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--requirepass", password, "--dir", str(folder)]
    process = subprocess.Popen([find_server(), *arguments], stdout=subprocess.DEVNULL)
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    client = redis.Redis.from_url(url)
    deadline = time.monotonic() + 10
    while True:
        try:
            client.ping()
            break
        except redis.ConnectionError:
            assert time.monotonic() < deadline, "redis-server did not start"
    client.close()
    yield url
    process.terminate()
    process.wait()


@pytest.fixture(scope="session", params=["embedded", "tcp"])
def redis_kind(request: pytest.FixtureRequest) -> str:
    """Both ways to a real Redis: the service's own, and one by REDIS_URL. What uses this is run on each."""
    kind: str = request.param
    return kind


@pytest.fixture(scope="session")
def redis_url(redis_kind: str, request: pytest.FixtureRequest) -> str:
    """The address of a real Redis of either kind."""
    if redis_kind == "tcp":
        url: str = request.getfixturevalue("tcp_redis_url")
        return url
    embedded: EmbeddedRedis = request.getfixturevalue("embedded_redis")
    return f"unix://{embedded.socket}"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"
