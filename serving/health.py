"""Whether the service is well: runners are listened to all the time, and tried out when somebody asks.

alive: this process's event loop turns, and no runner that has ever answered has been silent for long. ready: every
runner computes a sequence in time, and at least one has its model.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from models.catalogue import Model
from models.text.model import TextModel
from serving.errors import (
    DeadlineExceeded,
    InferenceFailed,
    ModelNotLoaded,
    Overloaded,
    RunnerUnavailable,
    ServiceError,
)
from serving.measures import Measures
from serving.runners import ServedModel, ServedText, Terms

logger = logging.getLogger(__name__)

BEAT_EVERY_S = 1.0
MAX_SILENT_BEATS = 2  # behind which nothing new is sent to a runner until it answers again
CANARY_TIMEOUT_S = 3.0
CANARY_LENGTH = 12
CANARY_HOLDS_S = 1.0  # for which an answer stands: several probes are one try
_LETTERS = "ACDEFGHIKLMNPQRSTVY"
_FORMS: dict[type, dict[str, Any]] = {Model: {"pooled": True, "dtype": "float32"}, TextModel: {"truncate": True}}


@dataclass
class Pulse:
    """What is known of a runner. Times are of time.monotonic; None: it has never answered.

    computes: it did when it was last tried. fault: why it did not; None where it has no model to compute with.
    """

    heard_at: float | None = None
    missed: int = 0
    has_model: bool = False
    tried_at: float = -math.inf
    computes: bool = False
    fault: str | None = "it has not been tried yet"


@dataclass
class Health:
    """The runners of one gateway worker.

    Args:
        served: the models that run here. silence_s: for which a runner may be silent before this is not alive.
    """

    served: Sequence[ServedModel | ServedText]
    silence_s: float
    measures: Measures
    pulses: dict[str, Pulse] = field(init=False)

    def __post_init__(self) -> None:
        self.pulses = {served.model.name: Pulse() for served in self.served}
        self._trying: asyncio.Task[None] | None = None

    async def listen(self) -> None:
        """For ever: hears every runner's heart, and how late the event loop is."""
        while True:
            due = time.perf_counter() + BEAT_EVERY_S
            await asyncio.sleep(BEAT_EVERY_S)
            self.measures.lag_s.set(max(0.0, time.perf_counter() - due))
            await asyncio.gather(*(self._hear(served) for served in self.served))
            self.measures.models_loaded.set(sum(pulse.has_model for pulse in self.pulses.values()))

    async def _hear(self, served: ServedModel | ServedText) -> None:
        pulse = self.pulses[served.model.name]
        try:
            await served.status()
            pulse.heard_at, pulse.missed, pulse.has_model = time.monotonic(), 0, True
        except ModelNotLoaded:
            pulse.heard_at, pulse.missed, pulse.has_model = time.monotonic(), 0, False
        except RunnerUnavailable:
            pulse.missed += 1
            pulse.has_model = False
            if pulse.missed == MAX_SILENT_BEATS and pulse.heard_at is not None:
                logger.error("%s is silent; new requests for it are refused", served.model.runner)
            if pulse.missed >= MAX_SILENT_BEATS:
                served.runner.suspect()
        self.measures.runner_up.labels(served.model.name).set(int(pulse.has_model))

    def is_alive(self) -> bool:
        """False once a runner that used to answer has been silent for longer than a restart may take."""
        now = time.monotonic()
        heard = [pulse.heard_at for pulse in self.pulses.values() if pulse.heard_at is not None]
        return all(now - at <= self.silence_s for at in heard)

    async def is_ready(self) -> bool:
        """Whether every runner computes, or says that its model cannot be loaded; one must compute."""
        if self._trying is None or self._trying.done():
            self._trying = asyncio.create_task(self._try_all())
        await asyncio.shield(self._trying)
        pulses = self.pulses.values()
        return any(pulse.computes for pulse in pulses) and all(pulse.fault is None for pulse in pulses)

    async def _try_all(self) -> None:
        now = time.monotonic()
        old = [one for one in self.served if now - self.pulses[one.model.name].tried_at > CANARY_HOLDS_S]
        await asyncio.gather(*(self._try(served) for served in old))

    async def _try(self, served: ServedModel | ServedText) -> None:
        pulse = self.pulses[served.model.name]
        fault = None
        try:
            pulse.computes = await self._computes(served)
            pulse.heard_at = time.monotonic()
        except ServiceError as error:
            pulse.computes, fault = False, str(error)
        if fault is not None and pulse.fault != fault:
            logger.warning("not ready: %s", fault)
        pulse.fault = fault
        pulse.tried_at = time.monotonic()

    async def _computes(self, served: ServedModel | ServedText) -> bool:
        """Sends something small the way that everything goes. False: there is no model to compute it.

        Raises:
            RunnerUnavailable, InferenceFailed: it is not computed.
        """
        terms = Terms(asyncio.get_running_loop().time() + CANARY_TIMEOUT_S, "probe")
        try:
            reply = await served.runner.embed([_canary(served)], _FORMS.get(type(served.model), {}), terms)
        except ModelNotLoaded:
            return False
        except Overloaded:
            return True  # it refuses because it works
        except DeadlineExceeded:
            await self._check_progress(served)
            return True
        if reply.errors:
            raise InferenceFailed(f"{served.model.runner}: {reply.errors[0]}")
        return True

    @staticmethod
    async def _check_progress(served: ServedModel | ServedText) -> None:
        """A device may be at a batch that takes long. One that takes far longer than it should is stuck.

        Raises:
            RunnerUnavailable: all devices are, or the runner does not answer.
        """
        devices = (await served.status())["per_device"]
        if all(device["overdue_s"] > 0 for device in devices if not device["is_lost"]):
            raise RunnerUnavailable(f"no device of {served.model.runner} gets on with its work")


def _canary(served: ServedModel | ServedText) -> str | list[str]:
    """New each time, so that it joins nothing that is computed already."""
    letters = "".join(random.choices(_LETTERS, k=CANARY_LENGTH))  # noqa: S311
    return [letters, letters] if getattr(served.model, "kind", "") == "reranking" else letters
