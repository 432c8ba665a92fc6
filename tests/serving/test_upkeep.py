"""What a gateway worker does beside requests."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving import upkeep
from serving.gateway import Gateway
from serving.jobs.service import JobService
from serving.runners import ServedModel
from serving.settings import Settings
from serving.upkeep import running


async def test_jobs_are_swept_where_outputs_cannot_be(
    served: ServedModel,
    redis_url: str,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
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
    gateway = Gateway.build(Settings(redis_url=redis_url, data_dir=data_dir), {"esm2_mini": served})
    gateway.outputs.folder.rmdir()
    async with asyncio.timeout(30), running(gateway):
        await is_enough.wait()
    assert "outputs cannot be swept" in caplog.text
