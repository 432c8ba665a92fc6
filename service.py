"""The Bento: a runner for each model of MODELS and TEXT_MODELS, and the gateway in front of them. Read it first.

    bentoml serve service:ProteinEmbeddingService

Each process that BentoML starts imports this file: nothing heavy happens here. A runner loads its weights when
it is built (models/runner.py); a request's way is in serving/.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal

import bentoml
import numpy as np
from bentoml.exceptions import BentoMLException, NotFound
from bentoml.images import Image
from bentoml.validators import ContentType, DType
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from models.catalogue import UnknownModel, find, find_served
from models.configs import CheckpointError
from models.departures import EndForWhoLeft
from models.runner import RunnerOptions, fault_of, make_runner
from models.text import stored as text_store
from models.text.model import TextModel
from models.text.settings import TextSettings
from serving import errors, image
from serving.access import Access
from serving.admission import Admission
from serving.app import ExplainPlainErrors, RefuseForms, create_app
from serving.auth import Authentication, Doorkeeper
from serving.gateway import Gateway
from serving.jobs.store import JobStore
from serving.outputs import NPZ_MEDIA_TYPE, NpzWriter, describe, writing
from serving.pipeline import MemorySink
from serving.redis import EmbeddedRedis, RedisStartError
from serving.runner_client import RunnerClient
from serving.runners import RowT, Served
from serving.schemas import ComputeOptions
from serving.sequences import OnTooLong, Record, default_id
from serving.settings import SettingsError, load_settings_or_exit, pin_metrics_dir, pin_models
from serving.telemetry import configure_logging, configure_tracing
from serving.texts import TextOptions
from serving.threads import run_to_its_end
from serving.vectors import embed

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "1")
# In a container BentoML would leave a runner that died for dead (docs/decisions/0023-alive-ready-and-the-end.md)
os.environ.pop("BENTOML_CONTAINERIZED", None)
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # docs/decisions/0020-threads-that-wait-awake.md
logger = logging.getLogger(__name__)
settings = load_settings_or_exit()
configure_logging(settings.log_level, settings.log_format)
METRICS_DIR = pin_metrics_dir(settings)
app = create_app(settings.role)


def resolve(entry: str) -> bentoml.Model:
    """The stored model behind an entry of MODELS: `name`, which is its latest version, or `name:version`."""
    name, _, version = entry.partition(":")
    try:
        return bentoml.models.get(f"{find(name).store_name}:{version or 'latest'}")
    except NotFound:
        raise SystemExit(
            f"MODELS: {entry} is not in the BentoML model store; put it there with "
            f"`python -m scripts.import_model {name}`"
        ) from None


def by_served_name(entries: Iterable[str]) -> dict[str, bentoml.Model]:
    """The stored models behind MODELS: a model's first version by its name, further ones by name:version."""
    served: dict[str, bentoml.Model] = {}
    for entry in entries:
        name, stored = entry.partition(":")[0], resolve(entry)
        if any(stored.tag == other.tag for other in served.values()):
            raise SystemExit(f"MODELS: {entry} is {stored.tag}, which is there already")
        served[f"{name}:{stored.tag.version}" if name in served else name] = stored
    return served


def resolve_text(name: str, source: str) -> tuple[bentoml.Model, TextModel]:
    """The stored model behind an entry of TEXT_MODELS, which is brought into the store if it is not there yet."""
    try:
        stored = text_store.resolve(name, source)
        return stored, text_store.row_of(name, stored)
    except (CheckpointError, OSError, ValueError, BentoMLException) as error:
        raise SystemExit(f"TEXT_MODELS: {error}") from None


def check_defaults() -> None:
    """A default that is not served, or is for something else, stops the start."""
    embedders = [*PROTEINS, *VERSIONS, *(name for name, row in ROWS.items() if row.kind == "embedding")]
    rerankers = [name for name, row in ROWS.items() if row.kind == "reranking"]
    for variable, wanted, names in (
        ("DEFAULT_EMBEDDING_MODEL", settings.default_embedding_model, embedders),
        ("DEFAULT_RERANKING_MODEL", settings.default_reranking_model, rerankers),
    ):
        if wanted is not None and wanted not in names:
            raise SystemExit(f"{variable}: {wanted} is none of those that are served: {', '.join(names)}")


STORED = by_served_name(settings.models)
PROTEINS = {name: find_served(name) for name in STORED}
VERSIONS = [f"{PROTEINS[name].base_name}:{stored.tag.version}" for name, stored in STORED.items()]
RESOLVED = {name: resolve_text(name, source) for name, source in settings.texts.items()}
STORED_TEXTS = {name: stored for name, (stored, _) in RESOLVED.items()}
ROWS = {name: row for name, (_, row) in RESOLVED.items()}
check_defaults()
PINNED = pin_models(VERSIONS, {name: str(stored.tag) for name, stored in STORED_TEXTS.items()})
OPTIONS = RunnerOptions(
    precision=settings.precision,
    use_kernels=settings.use_kernels,
    batch_tokens=settings.batch_tokens,
    batch_items=settings.batch_queue_max_size if settings.batch_queue_enabled else 1,
    batch_wait_s=settings.batch_queue_max_wait_ms / 1e3,
    queue_tokens=settings.max_queue_tokens,
    num_gpus=settings.runner_gpus,
    timeout_s=settings.runner_timeout_s,
    text=TextSettings(settings.text_precision, settings.text_attention, settings.text_compile),
    shutdown_s=settings.shutdown_timeout_secs + 5,  # the gateways come first
    prepare=functools.partial(configure_tracing, settings),
)
RUNNERS = {
    **{name: make_runner(PROTEINS[name], stored.tag, OPTIONS) for name, stored in STORED.items()},
    **{name: make_runner(ROWS[name], stored.tag, OPTIONS) for name, stored in STORED_TEXTS.items()},
}


def address(runner: bentoml.Service[Any]) -> str:
    """Where BentoML serves a runner."""
    url: str | None = runner.url
    if url is None:
        raise SystemExit("runners need processes of their own: serve without --development")
    return url


def serve(row: RowT, stored: bentoml.Model) -> Served[RowT]:
    """A model as the gateway knows it."""
    client = RunnerClient(row.runner, address(RUNNERS[row.name]), settings.runner_timeout_s)
    created = int(stored.info.creation_time.timestamp())
    return Served(row, str(stored.tag.version), stored.info.metadata, client, created)


def check_stored() -> None:
    """A checkpoint that is not what it should be is told of before the port opens.

    The others are served; where there are none, the start ends here.
    """
    faults = {name: fault for name, stored in STORED.items() if (fault := fault_of(PROTEINS[name], stored))}
    if len(faults) == len(RUNNERS):
        raise SystemExit("\n".join(faults.values()))
    for fault in faults.values():
        logger.critical("%s; it is not served", fault)


class ClientError(BentoMLException):
    """An error of ours, as BentoML's own clients are told of it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error), error_code=HTTPStatus(errors.status_of(error)))


@contextlib.contextmanager
def telling_clients() -> Iterator[None]:
    """Errors of ours as BentoML's."""
    try:
        yield
    except (errors.ServiceError, UnknownModel) as error:
        raise ClientError(error) from error


class _Gateway:
    """Answers HTTP: the REST routes of serving/app.py, and methods for BentoML's own clients."""

    def __init__(self) -> None:
        configure_tracing(settings, "gateway")
        self.gateway = app.state.gateway = Gateway.build(
            settings,
            {name: serve(PROTEINS[name], stored) for name, stored in STORED.items()},
            {name: serve(ROWS[name], stored) for name, stored in STORED_TEXTS.items()},
            METRICS_DIR,
        )

    @bentoml.on_deployment
    @staticmethod
    def prepare() -> None:
        """Once, before the port opens: the checkpoints, the data folder, and a Redis where none is given."""
        check_stored()
        try:
            settings.make_folders()
            if not Doorkeeper.build(settings).keys.is_set:
                logger.warning("neither API_KEYS nor API_KEYS_FILE is set: whoever reaches the port is served")
            JobStore(settings.jobs_url, settings.data_dir).check()
            if settings.redis_url is None:
                EmbeddedRedis(settings.data_dir, settings.redis_max_memory_mb).start()
        except (SettingsError, RedisStartError, ValueError) as error:
            raise SystemExit(str(error)) from None

    async def __is_alive__(self) -> bool:
        """For /livez."""
        return self.gateway.health.is_alive()

    async def __is_ready__(self) -> bool:
        """For /readyz. BentoML's own probe of runners hangs while one loads for long, so it is off below."""
        return await self.gateway.is_ready()

    @bentoml.api
    async def encode(
        self,
        sequences: list[str],
        context: bentoml.Context,
        model: str = next(iter(RUNNERS)),
        max_length: int | None = None,
        on_too_long: OnTooLong = "error",
    ) -> Annotated[np.ndarray, DType("float32")]:
        """Pooled embeddings of proteins, or of texts where the model is one of theirs, (B, D) float32."""
        if model in STORED_TEXTS:
            return await self._embed_texts(sequences, model, max_length, on_too_long, context)
        sink = MemorySink()
        wanted = ComputeOptions(dtype="float32", max_length=max_length, on_too_long=on_too_long)
        with telling_clients():
            await self._embed(sequences, model, wanted, sink, context)
        return np.stack([sink.embeddings[index] for index in range(len(sequences))])

    @bentoml.api
    async def encode_per_residue(
        self,
        sequences: list[str],
        context: bentoml.Context,
        model: str = next(iter(RUNNERS)),
        dtype: Literal["float16", "float32"] = "float16",
        max_length: int | None = None,
        on_too_long: OnTooLong = "error",
    ) -> Annotated[Path, ContentType(NPZ_MEDIA_TYPE)]:
        """Embeddings of every residue as a npz: `embedding_i` is (L, D) for the i-th sequence."""
        path = Path(context.temp_dir) / "embeddings.npz"
        ids = [default_id(index) for index in range(len(sequences))]
        wanted = ComputeOptions(pooled=False, dtype=dtype, max_length=max_length, on_too_long=on_too_long)
        with telling_clients():
            async with writing(path) as writer:
                manifest = await self._embed(sequences, model, wanted, writer, context)
                await run_to_its_end(lambda: writer.finish(ids, manifest))
        return path

    async def _embed_texts(
        self,
        texts: list[str],
        model: str,
        max_length: int | None,
        on_too_long: OnTooLong,
        context: bentoml.Context,
    ) -> np.ndarray:
        """As /embed does it; max_length is in tokens."""
        self._require_role()
        with telling_clients():
            if on_too_long == "window" or (max_length is not None and max_length < 1):
                raise errors.InvalidRequest("texts are not cut into windows, and have 1 token at least")
            options = TextOptions(truncate=on_too_long == "truncate", max_tokens=max_length)
            terms = self.gateway.terms(context.request)
            return (await embed(self.gateway, model, texts, options, terms)).rows

    @staticmethod
    def _require_role() -> None:
        if settings.role == "worker":
            raise NotFound("this process works on jobs alone")

    async def _embed(
        self,
        sequences: list[str],
        model: str,
        wanted: ComputeOptions,
        sink: MemorySink | NpzWriter,
        context: bentoml.Context,
    ) -> dict[str, Any]:
        """As the REST route does it, but all or nothing: these clients' replies have no room for parts."""
        self._require_role()
        records = [Record(default_id(index), sequence) for index, sequence in enumerate(sequences)]
        served, terms = self.gateway.models.find(model), self.gateway.terms(context.request)
        proteins, options = self.gateway.prepare(served, records, wanted)
        report = await self.gateway.pipeline.embed(served, proteins, options, sink, terms)
        if report.errors:
            index, reason = next(iter(report.errors.items()))
            raise errors.InferenceFailed(f"sequence {index}: {reason}")
        return describe(served, proteins, options, report)


@app.get("/docs.json", include_in_schema=False)
def describe_native() -> Response:
    """BentoML's description of its methods, which BentoML makes anew for each request: half a second of the event
    loop, for whoever asks."""
    return Response(_description(), media_type="application/json")


@functools.cache
def _description() -> str:
    return json.dumps(ProteinEmbeddingService.openapi_spec.asdict())


# Requests are counted, traced and logged by serving/access.py. BentoML's own measures have a label for each path
OWN_TELEMETRY: dict[str, Any] = {
    "metrics": {"enabled": False},
    "tracing": {"excluded_urls": ".*"},
    "logging": {"access": {"enabled": False}},
}

IMAGE = None
IMAGE_TORCH = os.environ.get("IMAGE_TORCH", "cpu")
if image.UV.exists():  # without the compilers that BentoML adds to a distribution which it knows by name
    IMAGE = Image(image.BASE, distro="", python_version=image.PYTHON).run(
        image.first_command(IMAGE_TORCH, os.environ.get("PIP_FIND_LINKS", ""))
    )

for _runner in RUNNERS.values():
    setattr(_Gateway, _runner.name, bentoml.depends(_runner))

ProteinEmbeddingService = bentoml.service(
    name="protein_embedding_service",
    image=IMAGE,
    labels={"torch": IMAGE_TORCH},
    workers=settings.gateway_workers,
    # What a Bento serves is what it was built with
    envs=[{"name": name, "value": value} for name, value in PINNED.items()],
    traffic={"timeout": settings.request_timeout_s + 10},  # ours comes first, and explains itself
    runner_probe={"enabled": False},
    **OWN_TELEMETRY,
)(bentoml.asgi_app(app, path="/")(_Gateway))
NATIVE = frozenset({"/encode", "/encode_per_residue"})
ProteinEmbeddingService.add_asgi_middleware(Access, named=NATIVE)
if settings.cors_origins:
    ProteinEmbeddingService.add_asgi_middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["*"],
    )
ProteinEmbeddingService.add_asgi_middleware(ExplainPlainErrors)
ProteinEmbeddingService.add_asgi_middleware(Authentication, doorkeeper=lambda: app.state.gateway.doorkeeper)
ProteinEmbeddingService.add_asgi_middleware(
    Admission,
    max_requests=settings.max_concurrent_requests,
    max_body_bytes=int(settings.max_body_mb * 1e6),
    max_bytes_of={"/embeddings/jobs/submit": int(settings.max_job_mb * 1e6)},
    under_way=lambda: app.state.gateway.under_way,
)
ProteinEmbeddingService.add_asgi_middleware(RefuseForms, paths=NATIVE)
ProteinEmbeddingService.add_asgi_middleware(EndForWhoLeft)
