"""What a gateway worker does beside requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serving import upkeep
from serving.cache import Cache
from serving.gateway import Gateway
from serving.jobs.service import JobService
from serving.jobs.worker import JobWorker
from serving.runners import ServedModel
from serving.settings import Settings
from serving.upkeep import running


@pytest.fixture
async def gateway(served: ServedModel, redis_url: str, data_dir: Path) -> AsyncIterator[Gateway]:
    gateway = Gateway.build(Settings(redis_url=redis_url, data_dir=data_dir), {"esm2_mini": served})
    yield gateway
    await gateway.client.aclose()
    await gateway.doorkeeper.limits.aclose()


async def test_jobs_are_swept_where_outputs_cannot_be(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Again and again; it is said what cannot be."""
    num_swept, is_enough, sweep = 0, asyncio.Event(), JobService.sweep

    async def count(jobs: JobService) -> None:
        nonlocal num_swept
        await sweep(jobs)
        num_swept += 1
        if num_swept == 2:
            is_enough.set()

    monkeypatch.setattr(JobService, "sweep", count)
    monkeypatch.setattr(upkeep, "SWEEP_EVERY_S", 0.01)
    gateway.outputs.folder.rmdir()
    async with asyncio.timeout(30), running(gateway):
        await is_enough.wait()
    assert "outputs cannot be swept" in caplog.text


async def test_what_fails_unforeseen_is_told_and_begun_anew(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside requests and under jobs; the others go on meanwhile."""
    num_counted, num_worked, is_enough = 0, 0, asyncio.Event()

    async def count(_: Cache) -> None:
        nonlocal num_counted
        num_counted += 1
        if min(num_counted, num_worked) >= 3:
            is_enough.set()
        raise RuntimeError("nobody thought of it")

    async def work(_: JobWorker) -> None:
        nonlocal num_worked
        num_worked += 1
        raise RuntimeError("nor of that")

    monkeypatch.setattr(Cache, "write_counts", count)
    monkeypatch.setattr(JobWorker, "run", work)
    monkeypatch.setattr(upkeep, "COUNT_EVERY_S", 0.0)
    monkeypatch.setattr(upkeep, "AGAIN_S", 0.01)
    async with asyncio.timeout(30):
        with pytest.raises(RuntimeError, match="nobody thought of it"):  # of the last counts, at the end
            async with running(gateway):
                await is_enough.wait()
    assert "nobody thought of it" in caplog.text
    assert "nor of that" in caplog.text
