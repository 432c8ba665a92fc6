"""A model that this deployment serves, and the runner behind it, as the gateway sees them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Protocol

from models.catalogue import Model
from models.schedule import Priority
from models.wire import Reply
from serving.errors import DeadlineExceeded, InferenceFailed, RunnerUnavailable

STATUS_TIMEOUT_S = 2.0
UNTRAINED_WARNING = "untrained weights: the numbers test the wiring and mean nothing in biology"


@dataclass(frozen=True)
class Terms:
    """On which a runner is to take a call.

    deadline: on the event loop's clock, in seconds, behind which nobody waits for the answer.
    is_admitted: the call belongs to a request of which another call was taken; it is not refused for a full queue,
    and waits for a runner that is being started anew.
    """

    deadline: float
    priority: Priority = "interactive"
    is_admitted: bool = False


class Runner(Protocol):
    """What can be asked of a runner; serving/runner_client.py says how it fails."""

    async def embed(self, sequences: list[str], pooled: bool, dtype: str, terms: Terms) -> Reply: ...

    async def status(self) -> dict[str, Any]: ...

    async def close(self) -> None: ...


@dataclass
class ServedModel:
    """A catalogue row, the version of it that was resolved at the start, and its runner.

    metadata: what the model store knows of the weights (source, revision, digest, trained).
    """

    model: Model
    version: str
    metadata: dict[str, Any]
    runner: Runner
    _description: dict[str, Any] | None = field(default=None, init=False)

    @property
    def tag(self) -> str:
        return f"{self.model.store_name}:{self.version}"

    @property
    def is_trained(self) -> bool:
        return bool(self.metadata["trained"])

    @property
    def description(self) -> str:
        """The catalogue's words, and the truth about the weights that are really there."""
        words = self.model.description
        return words if self.is_trained or "UNTRAINED" in words else f"{words}; here with UNTRAINED weights"

    async def status(self) -> dict[str, Any]:
        """What the runner says of itself now.

        Raises:
            RunnerUnavailable: it does not answer in time.
        """
        try:
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                return await self.runner.status()
        except (TimeoutError, DeadlineExceeded, InferenceFailed) as error:
            raise RunnerUnavailable(f"{self.model.runner} does not answer") from error

    def forget(self) -> None:
        """Has the description asked anew."""
        self._description = None

    async def describe(self) -> dict[str, Any]:
        """What does not change while a runner lives (precision, devices); asked once.

        Raises:
            RunnerUnavailable: it has not answered yet.
        """
        if self._description is None:
            self._description = await self.status()
        return self._description
