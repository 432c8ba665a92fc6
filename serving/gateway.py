"""What one gateway worker holds, built once at its start and handed to every route."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import redis.asyncio
from fastapi import Request
from starlette.requests import HTTPConnection

from models.catalogue import UnknownModel
from models.text.model import Kind, TextModel
from serving import measures
from serving import redis as redis_server
from serving.admission import UnderWay
from serving.auth import Doorkeeper, ledger_of
from serving.cache import Cache
from serving.closing import told_to_end
from serving.errors import InvalidRequest, NoSuchModel
from serving.health import Health
from serving.jobs.measures import measures_of_process as jobs_measures_of_process
from serving.jobs.queue import JobQueue, Quota
from serving.jobs.service import JobService
from serving.jobs.store import JobStore
from serving.jobs.worker import JobWorker
from serving.ledger import USES
from serving.outputs import OutputStore
from serving.parts import MIN_WINDOW, Options
from serving.pipeline import Pipeline
from serving.runners import ServedModel, ServedText, Terms
from serving.schemas import ComputeOptions
from serving.sequences import Limits, Protein, Record, clean_all
from serving.settings import Settings
from serving.tasks import apart, end, settle
from serving.texts import TextPipeline

logger = logging.getLogger(__name__)

SWEEP_EVERY_S = 60.0
COUNT_EVERY_S = 1.0
MEASURE_EVERY_S = 5.0
TIMEOUT_HEADER = "X-Request-Timeout"  # seconds


@dataclass(frozen=True)
class Gateway:
    """The parts that routes work with.

    served: protein models that run here, by their catalogue names; served_texts: text models, by the deployment's
    own names. metrics_dir: in which all processes of the deployment count.
    """

    settings: Settings
    served: Mapping[str, ServedModel]
    served_texts: Mapping[str, ServedText]
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
        served: Mapping[str, ServedModel],
        served_texts: Mapping[str, ServedText] = MappingProxyType({}),
        metrics_dir: Path | None = None,
    ) -> Gateway:
        doorkeeper = Doorkeeper.build(settings)

        async def admit(terms: Terms, num_tokens: int) -> None:
            if terms.priority == "interactive":  # jobs have limits of their own
                await doorkeeper.limits.take_tokens(terms.ledger, num_tokens)

        client = redis_server.connect(settings)
        cache = Cache(client, settings.redis_ttl_days * 86_400, settings.redis_compression_level)
        outputs = OutputStore(
            settings.data_dir / "outputs",
            client,
            ttl_s=settings.download_ttl_minutes * 60,
            writing_s=settings.request_timeout_s + 60,
        )
        jobs = JobService(
            JobQueue(client, settings.job_lease_s, ttl_s=settings.job_result_ttl_hours * 3600),
            JobStore(settings.jobs_url, scratch=settings.data_dir / "scratch"),
            Quota(settings.max_jobs_per_key, settings.max_job_sequences_per_key),
            jobs_measures_of_process(),
        )
        everything: list[ServedModel | ServedText] = [*served.values(), *served_texts.values()]
        for one in everything:
            kind: Kind = one.model.kind if isinstance(one.model, TextModel) else "embedding"
            measures.measures_of_process().expect(one.model.name, USES[kind])
        for name in served:
            jobs.measures.expect(name)
        return cls(
            *(settings, served, served_texts, client, cache, outputs),
            *(Pipeline(cache, admit), TextPipeline(cache, admit), jobs, doorkeeper),
            Health(everything, settings.liveness_silence_s, measures.measures_of_process()),
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

    @property
    def default_model(self) -> str:
        """The first protein model.

        Raises:
            NoSuchModel: there is none.
        """
        if not self.served:
            raise NoSuchModel("no protein model is served here; MODELS names those that are")
        return next(iter(self.served))

    @cached_property
    def by_name(self) -> dict[str, ServedModel]:
        """The protein models, by all that a request may call them: their names, and name:version."""
        versions = {f"{one.model.base_name}:{one.version}": one for one in self.served.values()}
        return {**versions, **self.served}

    def find(self, name: str) -> ServedModel:
        """The served model of exactly this name, or of this name and version.

        Raises:
            UnknownModel: it is not served here, with the names that come near.
        """
        if name not in self.by_name:
            raise UnknownModel(name, list(self.served))
        return self.by_name[name]

    @property
    def default_embedder(self) -> str | None:
        """The model of embeddings for whom names none: the deployment's choice, else texts before proteins.

        None where none is served.
        """
        wanted = self.settings.default_embedding_model
        return wanted or next(iter([*self._names_of("embedding"), *self.served]), None)

    def default_text_model(self, kind: Kind) -> str:
        """The model of a kind for whom names none.

        Raises:
            NoSuchModel: there is none.
        """
        wanted = self.settings.default_reranking_model if kind == "reranking" else None
        names = self._names_of(kind)
        if wanted is None and not names:
            raise NoSuchModel(f"no model for {kind} is served here; TEXT_MODELS names those that are")
        return wanted or names[0]

    def find_text_model(self, name: str, kind: Kind) -> ServedText:
        """The served text model of exactly this name.

        Raises:
            UnknownModel: it is not served here, or is of another kind.
        """
        if name in self.served_texts and self.served_texts[name].model.kind == kind:
            return self.served_texts[name]
        known = self._names_of(kind) + (list(self.served) if kind == "embedding" else [])
        raise UnknownModel(name, known)

    def find_any(self, name: str) -> ServedModel | ServedText:
        """The served model of exactly this name, whatever it is for.

        Raises:
            UnknownModel: it is not served here.
        """
        if name in self.served_texts:
            return self.served_texts[name]
        try:
            return self.find(name)
        except UnknownModel:
            raise UnknownModel(name, [*self.served, *self.served_texts]) from None

    def _names_of(self, kind: Kind) -> list[str]:
        return [name for name, served in self.served_texts.items() if served.model.kind == kind]

    @property
    def all_served(self) -> list[ServedModel | ServedText]:
        """Proteins' first."""
        return [*self.served.values(), *self.served_texts.values()]

    async def is_ready(self) -> bool:
        """Whether every runner computes, and at least one of them has its model; not while this process ends."""
        return not self.is_closing.is_set() and await self.health.is_ready()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While this is open, jobs are worked on, runners are listened to, counts are written, old files deleted.

        At its end jobs are handed back, and runners and Redis are let go.
        """
        work = [self._sweep_for_ever(), self._count_for_ever(), self._measure_for_ever(), self.health.listen()]
        work += [self._end_what_takes_too_long(), *(served.runner.attend() for served in self.all_served)]
        if self.settings.role != "api":
            jobs = self.jobs
            worker = JobWorker(jobs.queue, jobs.store, self.pipeline, self.by_name, jobs.measures)
            work += [self._until_closing(worker.run()) for _ in range(self.settings.job_concurrency)]
        with told_to_end(self.is_closing):
            tasks = [asyncio.create_task(each) for each in work]
            try:
                yield
            finally:
                await asyncio.gather(*(end(task) for task in tasks))
                await self.cache.write_counts()
                await asyncio.gather(*(served.runner.close() for served in self.all_served))
                await settle()
                await asyncio.gather(self.client.aclose(), self.doorkeeper.limits.aclose())

    async def _until_closing(self, work: Coroutine[Any, Any, None]) -> None:
        """Jobs are handed back when the process is told to end, not when its last client has left."""
        task, closing = asyncio.create_task(work), asyncio.create_task(self.is_closing.wait())
        try:
            await asyncio.wait([task, closing], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await asyncio.gather(end(task), end(closing))

    async def _end_what_takes_too_long(self) -> None:
        """Told to end, requests that were let in have a while; what is left then is told why it ends."""
        await self.is_closing.wait()
        await asyncio.sleep(self.settings.shutdown_timeout_secs)
        self.under_way.end()
        await asyncio.Event().wait()

    async def _count_for_ever(self) -> None:
        while True:
            await asyncio.sleep(COUNT_EVERY_S)
            await apart(self.cache.write_counts())  # cut off in the middle, it would lose what it counted

    async def _measure_for_ever(self) -> None:
        while True:
            found = measures.measures_of_process()
            found.cpu.set(psutil.cpu_percent())
            try:
                await self.jobs.note_depths(self.by_name)
                await self.client.ping()
                found.redis_up.set(1)
            except redis_server.REDIS_ERRORS:
                found.redis_up.set(0)
            await asyncio.sleep(MEASURE_EVERY_S)

    async def _sweep_for_ever(self) -> None:
        while True:
            try:
                deleted = await asyncio.to_thread(self.outputs.sweep)
                logger.debug("deleted %d expired outputs", deleted)
                await self.outputs.forget()
                await self.jobs.sweep()
            except redis_server.REDIS_ERRORS as error:
                measures.measures_of_process().redis_errors.labels("jobs").inc()
                logger.warning("outputs and jobs cannot be swept: %s", error)
            await asyncio.sleep(SWEEP_EVERY_S)


def length_range(settings: Settings) -> str:
    """Residues of a sequence, as replies show it."""
    return f"{settings.min_sequence_length}-{settings.max_sequence_length}"


async def gateway_of(request: Request) -> Gateway:
    """The gateway of the application that a request came to; for FastAPI's `Depends`, async to need no thread."""
    gateway: Gateway = request.app.state.gateway
    return gateway
