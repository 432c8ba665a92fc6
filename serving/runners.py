"""A model that this deployment serves, and the runner behind it, as the gateway sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from models.catalogue import Model
from models.schedule import Priority
from models.text.model import TextModel
from models.wire import Reply
from serving.errors import DeadlineExceeded, InferenceFailed, ModelNotLoaded, RunnerUnavailable
from serving.ledger import Ledger

STATUS_TIMEOUT_S = 2.0
UNTRAINED_WARNING = "untrained weights: the numbers test the wiring and mean nothing in biology"


@dataclass(frozen=True)
class Terms:
    """On which a runner is to take a call.

    deadline: on the event loop's clock, in seconds, behind which nobody waits for the answer.
    is_admitted: the call belongs to a request of which another call was taken; it is not refused for a full queue,
    and waits for a runner that is being started anew.
    ledger: of the request, to which its costs are added.
    """

    deadline: float
    priority: Priority = "interactive"
    is_admitted: bool = False
    ledger: Ledger = field(default_factory=Ledger)


class Runner(Protocol):
    """What can be asked of a runner; serving/runner_client.py says how it fails."""

    async def embed(self, sequences: list[Any], form: Mapping[str, Any], terms: Terms) -> Reply: ...

    async def status(self) -> dict[str, Any]: ...

    async def attend(self) -> None: ...

    def suspect(self) -> None: ...

    async def close(self) -> None: ...


class Row(Protocol):
    """What a table, or a deployment, says of a model."""

    @property
    def name(self) -> str: ...

    @property
    def store_name(self) -> str: ...

    @property
    def runner(self) -> str: ...

    @property
    def description(self) -> str: ...


RowT = TypeVar("RowT", bound=Row)


@dataclass
class Served(Generic[RowT]):
    """A row, the version of it that was resolved at the start, and its runner.

    metadata: what the model store knows of the weights (source, revision, digest, trained).
    created: when they came there, in seconds of 1970.
    """

    model: RowT
    version: str
    metadata: dict[str, Any]
    runner: Runner
    created: int = 0
    _description: dict[str, Any] | None = field(default=None, init=False)

    @property
    def tag(self) -> str:
        return f"{self.model.store_name}:{self.version}"

    @property
    def is_trained(self) -> bool:
        return bool(self.metadata.get("trained", True))

    @property
    def description(self) -> str:
        """The row's words, and the truth about the weights that are really there."""
        words = self.model.description
        return words if self.is_trained or "UNTRAINED" in words else f"{words}; here with UNTRAINED weights"

    async def status(self) -> dict[str, Any]:
        """What the runner says of itself now.

        Raises:
            ModelNotLoaded: it answers that the model could not be loaded.
            RunnerUnavailable: it does not answer in time.
        """
        try:
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                status = await self.runner.status()
        except (TimeoutError, DeadlineExceeded, InferenceFailed) as error:
            raise RunnerUnavailable(f"{self.model.runner} does not answer") from error
        if "failure" in status:
            raise ModelNotLoaded(status["failure"])
        return status

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


ServedModel = Served[Model]
ServedText = Served[TextModel]
