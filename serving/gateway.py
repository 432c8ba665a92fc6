"""What one gateway worker holds, built once at its start and handed to every route."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import redis.asyncio
from fastapi import Request

from models.catalogue import Model, find
from serving import redis as redis_server
from serving.cache import Cache
from serving.outputs import OutputStore
from serving.pipeline import Pipeline
from serving.runners import ServedModel
from serving.sequences import Limits
from serving.settings import Settings

logger = logging.getLogger(__name__)

SWEEP_EVERY_S = 60.0


@dataclass(frozen=True)
class Gateway:
    """The parts that routes work with. `served` maps catalogue names to the models that run here."""

    settings: Settings
    served: Mapping[str, ServedModel]
    client: redis.asyncio.Redis
    cache: Cache
    outputs: OutputStore
    pipeline: Pipeline

    @classmethod
    def build(cls, settings: Settings, served: Mapping[str, ServedModel]) -> Gateway:
        client = redis_server.connect(settings)
        cache = Cache(client, settings.redis_ttl_days * 86_400, settings.redis_compression_level)
        outputs = OutputStore(
            settings.data_dir / "outputs",
            client,
            ttl_s=settings.download_ttl_minutes * 60,
            writing_s=settings.request_timeout_s + 60,
        )
        return cls(settings, served, client, cache, outputs, Pipeline(cache, settings.request_timeout_s))

    @property
    def limits(self) -> Limits:
        s = self.settings
        return Limits(s.min_sequence_length, s.max_sequence_length, s.max_sequences_per_request)

    @property
    def default_model(self) -> str:
        return next(iter(self.served))

    def find(self, name: str) -> ServedModel:
        """The served model of exactly this name.

        Raises:
            UnknownModel: it is not served here, with the names that come near.
        """
        rows: dict[str, Model] = {served.model.name: served.model for served in self.served.values()}
        return self.served[find(name, rows).name]

    async def is_ready(self) -> bool:
        """Whether every runner answers."""
        answers = await asyncio.gather(*(s.status() for s in self.served.values()), return_exceptions=True)
        return not any(isinstance(answer, BaseException) for answer in answers)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While this is open, downloads whose time is over are deleted; at its end Redis is let go."""
        sweeper = asyncio.create_task(self._sweep_for_ever())
        try:
            yield
        finally:
            sweeper.cancel()
            await asyncio.gather(*(served.runner.close() for served in self.served.values()))
            await self.client.aclose()

    async def _sweep_for_ever(self) -> None:
        while True:
            try:
                deleted = await asyncio.to_thread(self.outputs.sweep)
                logger.debug("deleted %d expired outputs", deleted)
                await self.outputs.forget()
            except redis_server.REDIS_ERRORS as error:
                logger.warning("the outputs cannot be swept: %s", error)
            await asyncio.sleep(SWEEP_EVERY_S)


def gateway_of(request: Request) -> Gateway:
    """The gateway of the application that a request came to; for FastAPI's `Depends`."""
    gateway: Gateway = request.app.state.gateway
    return gateway
