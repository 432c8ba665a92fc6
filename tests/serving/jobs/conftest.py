"""Jobs in a real Redis, their files in a folder or in memory, and workers around a runner that counts residues."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator
from io import BytesIO
from pathlib import Path

import fsspec
import pytest
import redis.asyncio
from prometheus_client import CollectorRegistry

from serving.jobs.measures import Measures
from serving.jobs.queue import JobQueue, Quota
from serving.jobs.records import Order, new_id
from serving.jobs.schemas import JobOptions
from serving.jobs.service import JobService
from serving.jobs.store import JobStore
from serving.uploads import Upload

LEASE_S = 60.0  # longer than a test
TTL_S = 3600.0
PATIENCE_S = 20.0  # for what takes milliseconds on a quiet machine
ANY = Quota(max_jobs=100, max_sequences=10_000)


@pytest.fixture
def queue(client: redis.asyncio.Redis) -> JobQueue:
    return JobQueue(client, LEASE_S, TTL_S)


@pytest.fixture
def lapsing(client: redis.asyncio.Redis) -> JobQueue:
    """The same jobs; leases that are taken or renewed here have lapsed at once."""
    return JobQueue(client, lease_s=0, ttl_s=TTL_S)


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, data_dir: Path) -> Iterator[str]:
    """An OUTPUT_URL: a folder, and what fsspec reaches without one."""
    if request.param == "local":
        yield str(data_dir / "jobs")
        return
    url = f"memory://{uuid.uuid4().hex}/jobs"
    yield url
    system, root = fsspec.core.url_to_fs(url)
    if system.exists(root):
        system.rm(root, recursive=True)


@pytest.fixture
def store(place: str, data_dir: Path) -> JobStore:
    return JobStore(place, scratch=data_dir / "scratch")


@pytest.fixture
def measures() -> Measures:
    return Measures(CollectorRegistry())


@pytest.fixture
def service(queue: JobQueue, store: JobStore, measures: Measures) -> JobService:
    return JobService(queue, store, ANY, measures)


def order(
    num_sequences: int = 3, owner: str = "me", model: str = "esm2_mini", options: JobOptions = JobOptions()
) -> Order:
    """Of sequences of 10 residues."""
    return Order(new_id(), owner, model, f"{model}:v1", options, num_sequences, 10 * num_sequences)


def fasta(*sequences: str) -> Upload:
    """Sequences named p0, p1, ..."""
    text = "".join(f">p{index}\n{sequence}\n" for index, sequence in enumerate(sequences))
    return Upload(BytesIO(text.encode()), "fasta", max_bytes=1_000_000)


def files_of(place: str) -> set[str]:
    """Everything that is there, by its path below the place."""
    system, root = fsspec.core.url_to_fs(place)
    system.invalidate_cache()
    return {path.removeprefix(root).lstrip("/") for path in system.find(root)}


def folders_of(place: str) -> set[str]:
    """The jobs that have a folder there, though it may be empty."""
    system, root = fsspec.core.url_to_fs(place)
    if not system.exists(root):
        return set()
    return {path.rstrip("/").rpartition("/")[2] for path in system.ls(root, detail=False)}


async def until(holds: Callable[[], Awaitable[bool]], claim: str) -> None:
    """Polls. Fails with the claim where it does not come true in time."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while not await holds():
        assert asyncio.get_running_loop().time() < deadline, f"not within {PATIENCE_S:g} s: {claim}"
        await asyncio.sleep(0.002)
