"""What one gateway worker holds, built once at its start and handed to every route."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import redis.asyncio
from fastapi import Request
from starlette.requests import HTTPConnection

from models.text.model import Kind, TextModel
from serving import measures
from serving import redis as redis_server
from serving.admission import UnderWay
from serving.auth import Doorkeeper, ledger_of
from serving.cache import Cache
from serving.errors import InvalidRequest
from serving.health import Health
from serving.jobs.measures import measures_of_process as jobs_measures_of_process
from serving.jobs.queue import JobQueue, Quota
from serving.jobs.service import JobService
from serving.jobs.store import JobStore
from serving.ledger import USES
from serving.lineup import Lineup
from serving.outputs import OutputStore
from serving.parts import MIN_WINDOW, Options
from serving.pipeline import Pipeline
from serving.runners import ServedModel, ServedText, Terms
from serving.schemas import ComputeOptions
from serving.sequences import Limits, Protein, Record, clean_all
from serving.settings import Settings
from serving.texts import TextPipeline

TIMEOUT_HEADER = "X-Request-Timeout"  # seconds


@dataclass(frozen=True)
class Gateway:
    """The parts that routes work with. metrics_dir: in which all processes of the deployment count."""

    settings: Settings
    models: Lineup
    client: redis.asyncio.Redis
    cache: Cache
    outputs: OutputStore
    pipeline: Pipeline
    texts: TextPipeline
    jobs: JobService
    doorkeeper: Doorkeeper
    health: Health
    metrics_dir: Path | None = None
    is_closing: asyncio.Event = field(default_factory=asyncio.Event)
    under_way: UnderWay = field(default_factory=UnderWay)

    @classmethod
    def build(
        cls,
        settings: Settings,
        proteins: Mapping[str, ServedModel],
        texts: Mapping[str, ServedText] = MappingProxyType({}),
        metrics_dir: Path | None = None,
    ) -> Gateway:
        """proteins: models by their catalogue names; texts: by the deployment's own names."""
        wanted: dict[Kind, str | None] = {
            "embedding": settings.default_embedding_model,
            "reranking": settings.default_reranking_model,
        }
        models = Lineup(proteins, texts, wanted)
        doorkeeper = Doorkeeper.build(settings)

        async def admit(terms: Terms, num_tokens: int) -> None:
            if terms.priority == "interactive":  # jobs have limits of their own
                await doorkeeper.limits.take_tokens(terms.ledger, num_tokens)

        client = redis_server.connect(settings)
        cache = Cache(client, settings.redis_ttl_days * 86_400, settings.redis_compression_level)
        outputs = OutputStore(
            settings.data_dir / "outputs",
            ttl_s=settings.download_ttl_minutes * 60,
            writing_s=settings.request_timeout_s + 60,
        )
        jobs = JobService(
            JobQueue(client, settings.job_lease_s, ttl_s=settings.job_result_ttl_hours * 3600),
            JobStore(settings.jobs_url, scratch=settings.data_dir / "scratch"),
            Quota(settings.max_jobs_per_key, settings.max_job_sequences_per_key),
            jobs_measures_of_process(),
        )
        for one in models.all:
            kind: Kind = one.model.kind if isinstance(one.model, TextModel) else "embedding"
            measures.measures_of_process().expect(one.model.name, USES[kind])
        for name in proteins:
            jobs.measures.expect(name)
        return cls(
            *(settings, models, client, cache, outputs),
            *(Pipeline(cache, admit), TextPipeline(cache, admit), jobs, doorkeeper),
            Health(models.all, settings.liveness_silence_s, measures.measures_of_process()),
            metrics_dir,
        )

    def prepare(
        self, served: ServedModel, records: Sequence[Record], wanted: ComputeOptions
    ) -> tuple[list[Protein], Options]:
        """What the pipeline is given for a request.

        Raises:
            InvalidRequest: `max_length` is out of bounds, or there is no sequence.
            TooManySequences, InvalidSequences: as `clean_all`.
        """
        limits = self.limits(wanted, self.settings.max_sequences_per_request)
        window = limits.max_length if wanted.on_too_long == "window" else None
        return clean_all(records, served.model, limits), Options(wanted.pooled, wanted.dtype, window)

    def limits(self, wanted: ComputeOptions, max_sequences: int) -> Limits:
        """What the sequences of a request must keep to.

        Raises:
            InvalidRequest: `max_length` is out of bounds.
        """
        s = self.settings
        max_length = wanted.max_length or s.max_sequence_length
        if not s.min_sequence_length <= max_length <= s.max_sequence_length:
            raise InvalidRequest(f"max_length: {max_length} is not in {length_range(s)}")
        if wanted.on_too_long == "window" and max_length < min(MIN_WINDOW, s.max_sequence_length):
            raise InvalidRequest(f"max_length: {max_length}; windows have {MIN_WINDOW} residues at least")
        return Limits(s.min_sequence_length, max_length, max_sequences, wanted.on_too_long)

    def terms(self, request: HTTPConnection) -> Terms:
        """On which a request that comes now is worked on: within its own time limit, if it names a shorter one.

        Raises:
            InvalidRequest: the limit is no number of seconds.
        """
        timeout_s = self.settings.request_timeout_s
        if (asked := request.headers.get(TIMEOUT_HEADER)) is not None:
            try:
                asked_s = float(asked)
            except ValueError:
                asked_s = 0.0
            if not asked_s > 0:
                raise InvalidRequest(f"{TIMEOUT_HEADER}: {asked[:40]!r} is not a number of seconds above 0")
            timeout_s = min(timeout_s, asked_s)
        deadline = asyncio.get_running_loop().time() + timeout_s
        return Terms(deadline, ledger=ledger_of(request.scope))

    async def is_ready(self) -> bool:
        """Whether every runner computes, and at least one of them has its model; not while this process ends."""
        return not self.is_closing.is_set() and await self.health.is_ready()


def length_range(settings: Settings) -> str:
    """Residues of a sequence, as replies show it."""
    return f"{settings.min_sequence_length}-{settings.max_sequence_length}"


async def gateway_of(request: Request) -> Gateway:
    """The gateway of the application that a request came to; for FastAPI's `Depends`, async to need no thread."""
    gateway: Gateway = request.app.state.gateway
    return gateway
