"""A runner whose answers one can work out in one's head, and the parts of a gateway around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis.asyncio

from models.catalogue import CATALOGUE, MINI
from models.wire import Reply
from serving.cache import Cache
from serving.errors import Overloaded, RunnerUnavailable
from serving.outputs import OutputStore
from serving.pipeline import Pipeline
from serving.redis import connect
from serving.runners import ServedModel, Terms
from serving.sequences import Protein
from serving.settings import Settings
from serving.tasks import settle


class CountingRunner:
    """Pooled: a vector full of the sequence's length. Per residue: row i full of i modulo 1000.

    A sequence with a W in it fails. `gate`, when closed, holds every call back. While `is_full`, only calls of
    admitted requests are taken. What it was asked for is kept: `calls`, and for each its `forms` and `terms`.
    """

    def __init__(self, dim: int = MINI.dim) -> None:
        self.dim = dim
        self.calls: list[list[str]] = []
        self.forms: list[tuple[bool, str]] = []
        self.terms: list[Terms] = []
        self.num_running = 0
        self.most_running = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_down = False
        self.is_full = False
        self.precision = "fp32"
        self.device: str | None = "cpu"

    async def embed(self, sequences: list[Any], form: Mapping[str, Any], terms: Terms) -> Reply:
        pooled, dtype = form["pooled"], form["dtype"]
        if self.is_down:
            raise RunnerUnavailable("down")
        self.calls.append(sequences)
        self.forms.append((pooled, dtype))
        self.terms.append(terms)
        if self.is_full and not terms.is_admitted:
            raise Overloaded("full", 7)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        await self.gate.wait()
        await asyncio.sleep(0)
        self.num_running -= 1
        good = [s for s in sequences if "W" not in s]
        values = [[len(s)] if pooled else [i % 1000 for i in range(len(s))] for s in good]
        rows = np.array([value for row in values for value in row], dtype)
        return Reply(
            lengths=[0 if "W" in s else 1 if pooled else len(s) for s in sequences],
            embeddings=np.repeat(rows[:, None], self.dim, axis=1),
            errors={i: "has a W" for i, s in enumerate(sequences) if "W" in s},
            precision=self.precision,
            devices=[self.device] * len(sequences),
            num_tokens=[len(s) for s in sequences],
        )

    async def status(self) -> dict[str, Any]:
        if self.is_down:
            raise RunnerUnavailable("down")
        return {"precision": self.precision, "devices": ["cpu"]}

    async def attend(self) -> None:
        await asyncio.Event().wait()

    def suspect(self) -> None:
        pass

    async def close(self) -> None:
        self.is_down = True


@pytest.fixture
def runner() -> CountingRunner:
    return CountingRunner()


@pytest.fixture
def served(runner: CountingRunner) -> ServedModel:
    return ServedModel(MINI, "v1", {"trained": False}, runner)


@pytest.fixture
def served_t5() -> ServedModel:
    return ServedModel(CATALOGUE["prot_t5"], "v1", {"trained": True}, CountingRunner(dim=1024))


@pytest.fixture
async def client(redis_url: str, data_dir: Path) -> AsyncIterator[redis.asyncio.Redis]:
    """A client of a real, empty Redis."""
    client = connect(Settings(redis_url=redis_url, data_dir=data_dir))
    await client.flushdb()
    yield client
    await settle()
    await client.aclose()


@pytest.fixture
async def dead_client(data_dir: Path) -> AsyncIterator[redis.asyncio.Redis]:
    """A client of an address where nothing listens."""
    client = connect(Settings(redis_url=f"unix://{data_dir}/nobody.sock", data_dir=data_dir))
    yield client
    await client.aclose()


@pytest.fixture
def cache(client: redis.asyncio.Redis) -> Cache:
    return Cache(client, ttl_s=60, level=6)


@pytest.fixture
def pipeline(cache: Cache) -> Pipeline:
    return Pipeline(cache)


@pytest.fixture
def outputs(data_dir: Path) -> OutputStore:
    data_dir.mkdir()
    return OutputStore(data_dir / "outputs", ttl_s=60, writing_s=3600)


def proteins(*sequences: str) -> list[Protein]:
    return [Protein(f"p{index}", sequence) for index, sequence in enumerate(sequences)]


def within(timeout_s: float = 60.0, is_admitted: bool = False) -> Terms:
    """Terms of a call that is made now."""
    return Terms(asyncio.get_running_loop().time() + timeout_s, is_admitted=is_admitted)
