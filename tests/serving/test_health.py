"""Listening to runners, and trying them out."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from models.catalogue import MINI
from serving import health
from serving.errors import DeadlineExceeded, InferenceFailed, ModelNotLoaded, RunnerUnavailable
from serving.health import Health
from serving.measures import Measures
from serving.runners import ServedModel
from tests.serving.conftest import CountingRunner


class MoodyRunner(CountingRunner):
    """Answers as it is told: `status_error` and `embed_error` are raised if set; `overdue_s` is its device's."""

    def __init__(self) -> None:
        super().__init__()
        self.status_error: Exception | None = None
        self.embed_error: Exception | None = None
        self.overdue_s = 0.0
        self.num_suspected = 0

    async def embed(self, *arguments: Any) -> Any:
        if self.embed_error is not None:
            raise self.embed_error
        return await super().embed(*arguments)

    async def status(self) -> dict[str, Any]:
        if self.status_error is not None:
            raise self.status_error
        device = {"name": "cpu", "is_lost": False, "overdue_s": self.overdue_s}
        return await super().status() | {"per_device": [device, {**device, "is_lost": True, "overdue_s": 0.0}]}

    def suspect(self) -> None:
        self.num_suspected += 1


class Ward:
    """Two runners of models under names of their own, and the health of both."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(health, "CANARY_HOLDS_S", -1)
        self.first, self.second = MoodyRunner(), MoodyRunner()
        self.registry = CollectorRegistry()
        served = [
            ServedModel(dataclasses.replace(MINI, name=name), "v1", {}, runner)
            for name, runner in (("esm2_mini", self.first), ("other", self.second))
        ]
        self.health = Health(served, silence_s=100, measures=Measures(self.registry))

    async def hear(self) -> None:
        for served in self.health.served:
            await self.health._hear(served)

    def up(self, model: str) -> float | None:
        return self.registry.get_sample_value("runner_up", {"model": model})


@pytest.fixture
def ward(monkeypatch: pytest.MonkeyPatch) -> Ward:
    return Ward(monkeypatch)


async def test_ready_is_who_computes_a_sequence(ward: Ward) -> None:
    assert await ward.health.is_ready()
    (canary,) = ward.first.calls[0]
    assert len(canary) == health.CANARY_LENGTH
    assert ward.first.terms[0].priority == "probe"
    await ward.health.is_ready()
    assert ward.first.calls[1] != [canary], "a new one each time, which nothing has computed before"


@pytest.mark.parametrize("error", [RunnerUnavailable("gone"), InferenceFailed("a kernel failed")])
async def test_one_runner_that_fails_is_enough_to_be_not_ready(ward: Ward, error: Exception) -> None:
    ward.second.embed_error = error
    assert not await ward.health.is_ready()
    ward.second.embed_error = None
    assert await ward.health.is_ready()


async def test_a_model_that_cannot_be_loaded_leaves_the_others_ready(ward: Ward) -> None:
    ward.first.embed_error = ModelNotLoaded("no such file")
    assert await ward.health.is_ready()
    ward.second.embed_error = ModelNotLoaded("no such file")
    assert not await ward.health.is_ready()


async def test_a_runner_that_computes_was_heard(ward: Ward) -> None:
    await ward.health.is_ready()
    heard = [pulse.heard_at for pulse in ward.health.pulses.values()]
    assert None not in heard, "from now on its silence counts"


async def test_a_full_queue_is_work_and_no_fault(ward: Ward) -> None:
    ward.first.is_full = True
    assert await ward.health.is_ready()


async def test_a_long_batch_is_no_fault_and_one_that_hangs_is(ward: Ward) -> None:
    ward.first.embed_error = DeadlineExceeded("too long")
    assert await ward.health.is_ready(), "the device is at a batch that takes long"
    ward.first.overdue_s = 0.1
    assert not await ward.health.is_ready(), "the only device that is not lost hangs"
    ward.first.overdue_s, ward.first.status_error = 0, TimeoutError()
    assert not await ward.health.is_ready(), "the runner says nothing at all"


async def test_several_probes_are_one_try(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CANARY_HOLDS_S", 60)
    assert all(await asyncio.gather(*(ward.health.is_ready() for _ in range(20))))
    assert await ward.health.is_ready()
    assert len(ward.first.calls) == 1


async def test_a_silent_runner_is_suspected_after_two_beats(ward: Ward) -> None:
    await ward.hear()
    assert (ward.up("esm2_mini"), ward.up("other")) == (1, 1)
    ward.first.status_error = TimeoutError()
    await ward.hear()
    assert (ward.first.num_suspected, ward.up("esm2_mini")) == (0, 0)
    await ward.hear()
    assert (ward.first.num_suspected, ward.second.num_suspected) == (1, 0)
    ward.first.status_error = None
    await ward.hear()
    assert ward.up("esm2_mini") == 1


async def test_liveness_ends_when_a_runner_that_answered_is_silent_for_too_long(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    ward.second.status_error = TimeoutError()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    await ward.hear()
    monkeypatch.setattr(time, "monotonic", lambda: now + 99)
    assert ward.health.is_alive()
    monkeypatch.setattr(time, "monotonic", lambda: now + 101)
    assert not ward.health.is_alive(), "the first is silent; the second, which has never answered, may be loading"
    await ward.hear()
    assert ward.health.is_alive()
