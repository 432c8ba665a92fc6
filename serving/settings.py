"""Every setting of the service, read from the environment here and nowhere else."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import redis.asyncio
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.catalogue import CATALOGUE
from models.text.model import Kind
from serving.model_names import (
    NO_MODELS,
    check_protein_models,
    check_text_models,
    check_text_name,
    default_models,
    default_text_models,
    text_entry,
)

Role = Literal["all", "api", "worker"]
LogFormat = Literal["text", "json"]

TITLE = "Protein Embedding Service"
_USUAL_PORTS = {"http": 80, "https": 443}
VERSION = "1.0.0"  # of the service; pyproject.toml says the same


def _default_data_dir() -> Path:
    return Path.home() / ".local" / "share" / "protein_embedding_service"


class Settings(BaseSettings):
    """One field a variable, in capitals: `MODELS`, `REDIS_URL`, ... A bad value stops the start."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, extra="ignore")

    models: Annotated[tuple[str, ...], NoDecode] = Field(
        default_factory=default_models,
        description="models to run, comma-separated; `name` or `name:version` in the store; `none`: texts alone",
    )
    text_models: Annotated[tuple[str, ...], NoDecode] = Field(
        default_factory=default_text_models,
        description="text models to run, comma-separated; `name=source`, or a source that is its own name: a "
        "folder, a name on the hub, or a tag of the model store",
    )
    default_embedding_model: str | None = Field(
        None, description="for whom names none; also run where TEXT_MODELS does not name it"
    )
    default_reranking_model: str | None = Field(None, description="the same for reranking")
    data_dir: Path = Field(
        default_factory=_default_data_dir, description="folder of the outputs and of the embedded Redis"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least level logged")
    log_format: LogFormat = Field("text", description="`json`: one object a line")
    otel_exporter_otlp_endpoint: str | None = Field(
        None, description="OpenTelemetry collector that gets traces, `http://host:4317` say; unset: no traces"
    )
    otel_exporter_otlp_protocol: Literal["grpc", "http/protobuf"] = Field("grpc", description="of that collector")
    otel_service_name: str = Field("protein-embedding-service", description="name in the traces")
    otel_service_version: str = Field(VERSION, description="version in the traces")

    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="precision of the products; `auto` asks the hardware"
    )
    use_kernels: bool = Field(
        True, description="own kernels where the processor has 16-bit products; else torch's"
    )
    batch_tokens: int | None = Field(
        None, ge=64, le=1_000_000, description="cost of one batch at most, in tokens; unset: what suits the device"
    )
    batch_queue_enabled: bool = Field(True, description="false: every sequence is a batch of its own")
    batch_queue_max_size: int | None = Field(
        None, ge=1, description="sequences of a batch at most; unset: no limit"
    )
    batch_queue_max_wait_ms: float = Field(
        0, ge=0, le=10_000, description="for which a free device waits for a fuller batch; 0: it never waits"
    )
    max_queue_tokens: int | None = Field(
        None, ge=64, description="cost of what may wait for a model, in tokens; unset: 256 full batches"
    )
    text_precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of text models; `auto` is fp32"
    )
    text_attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        "auto", description="implementation in text models; `auto` leaves it to transformers"
    )
    text_compile: bool = Field(False, description="text models by torch.compile; needs a C++ compiler on a CPU")
    runner_gpus: int = Field(
        0, ge=0, le=64, description="GPUs reserved for each model; 0: every model uses all that are there"
    )
    runner_timeout_s: float = Field(600, gt=0, le=86_400, description="seconds for one call of a runner")
    request_timeout_s: float = Field(3600, gt=0, le=86_400, description="seconds for one request, all its calls")
    metrics_dir: Path | None = Field(
        None,
        description="folder in which this deployment's processes count; unset: one in the temporary folder",
    )
    shutdown_timeout_secs: float = Field(
        30, ge=0, le=3600, description="seconds for requests under way when the service is told to end"
    )
    liveness_silence_s: float = Field(
        600, ge=10, le=86_400, description="seconds for which a runner may be silent before /livez fails"
    )
    gateway_workers: int = Field(2, ge=1, le=64, description="processes that answer HTTP")
    max_concurrent_requests: int = Field(
        256, ge=1, le=100_000, description="requests that one gateway worker has under way at most"
    )
    max_body_mb: float = Field(32, gt=0, le=100_000, description="megabytes of the body of a request at most")

    min_sequence_length: int = Field(10, ge=1, le=1_000_000, description="residues of a sequence at least")
    max_sequence_length: int = Field(5000, ge=1, le=1_000_000, description="residues of a sequence at most")
    max_sequences_per_request: int = Field(100, ge=1, le=100_000, description="sequences of a request at most")
    max_embedding_batch_size: int = Field(
        256, ge=1, le=100_000, description="texts of a request to embed or classify at most"
    )
    max_reranking_batch_size: int = Field(
        64, ge=1, le=100_000, description="documents of a request to rerank at most"
    )
    download_ttl_minutes: float = Field(10, gt=0, le=100_000, description="minutes that a download is kept")

    role: Role = Field(
        "all", description="`api` takes jobs in and does not work on them, `worker` works on them alone"
    )
    output_url: str | None = Field(
        None,
        description="place of the jobs' files: a folder, or a URL that fsspec reaches, `s3://bucket/prefix`, say; "
        "all gateways must see it; unset: `jobs` in DATA_DIR",
    )
    job_concurrency: int = Field(1, ge=1, le=64, description="jobs that one gateway worker works on at a time")
    job_lease_s: float = Field(
        10, ge=1, le=3600, description="seconds after which the job of a worker that vanished goes to another"
    )
    job_result_ttl_hours: float = Field(72, gt=0, le=10_000, description="hours that a job's result is kept")
    max_sequences_per_job: int = Field(100_000, ge=1, le=10_000_000, description="sequences of a job at most")
    max_job_mb: float = Field(
        512, gt=0, le=100_000, description="megabytes of a job's submission at most, uncompressed too"
    )
    max_jobs_per_key: int = Field(
        100, ge=1, le=100_000, description="jobs of one owner that are queued or running at most"
    )
    max_job_sequences_per_key: int = Field(
        1_000_000, ge=1, description="sequences in them at most; one job is always taken"
    )

    api_keys: SecretStr = Field(
        SecretStr(""), description="`name:key,name:key`; where there is one, requests need a key"
    )
    api_keys_file: Path | None = Field(
        None, description="file of the same, one a line; read again when it changes"
    )
    admin_api_keys: SecretStr = Field(
        SecretStr(""), description="the same for operators; they may clear the cache and see the settings"
    )
    admin_api_keys_file: Path | None = Field(None, description="file of the same")
    health_open: bool = Field(True, description="probes need no key")
    metrics_open: bool = Field(True, description="/metrics needs no key")
    docs_open: bool = Field(True, description="the documentation pages need no key")
    requests_per_minute: int | None = Field(None, ge=1, description="of one caller at most; unset: no limit")
    tokens_per_minute: int | None = Field(
        None, ge=1, description="that are computed for one caller's requests at most; unset: no limit"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="origins of web pages that may ask, comma-separated; none by default"
    )

    redis_url: str | None = Field(
        None,
        description="redis://, rediss:// or unix:// address; unset: the service starts a Redis of its own",
    )
    redis_ttl_days: float = Field(30, ge=0.001, le=3650, description="days that a cached embedding is kept")
    redis_compression_level: int = Field(6, ge=0, le=9, description="of cached embeddings, as zlib's; 0: none")
    redis_max_memory_mb: int = Field(
        2048, ge=16, description="megabytes of the service's own Redis at most; the least used keys go first"
    )

    @field_validator("models", "text_models", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            value = tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("models")
    @classmethod
    def _known_models(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value == (NO_MODELS,):
            return ()
        if not value:
            raise ValueError("names no model")
        check_protein_models(value)
        return value

    @field_validator("text_models")
    @classmethod
    def _named_sources(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_text_models(value)
        return value

    @field_validator("default_embedding_model", "default_reranking_model")
    @classmethod
    def _named_default(cls, value: str | None) -> str | None:
        if value is not None and value.partition(":")[0] not in CATALOGUE:
            check_text_name(value)
        return value

    @model_validator(mode="after")
    def _something_to_serve(self) -> Settings:
        if not self.models and not self.texts:
            raise ValueError(f"MODELS is {NO_MODELS}, and TEXT_MODELS names none either")
        if self.text_attention == "flash_attention_2" and self.text_precision in ("auto", "fp32"):
            raise ValueError("TEXT_ATTENTION=flash_attention_2 needs TEXT_PRECISION=bf16 or fp16")
        return self

    @field_validator("cors_origins")
    @classmethod
    def _whole_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not _is_origin(origin):
                raise ValueError(f"{origin!r} is no origin as browsers write it, https://lab.example.org say")
        return value

    @field_validator("otel_exporter_otlp_endpoint")
    @classmethod
    def _http_address(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).scheme not in ("http", "https"):
            raise ValueError("must start with http:// or https://")
        return value

    @field_validator("redis_url")
    @classmethod
    def _known_scheme(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).scheme not in ("redis", "rediss", "unix"):
            raise ValueError("must start with redis://, rediss:// or unix://")
        if value is not None:
            try:
                redis.asyncio.ConnectionPool.from_url(value)
            except (ValueError, TypeError):  # whose text may show the password
                raise ValueError("is no address of a Redis") from None
        return value

    @field_validator("max_sequence_length")
    @classmethod
    def _above_minimum(cls, value: int, info: object) -> int:
        minimum = getattr(info, "data", {}).get("min_sequence_length", 1)
        if value < minimum:
            raise ValueError(f"is below MIN_SEQUENCE_LENGTH ({minimum})")
        return value

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def texts(self) -> dict[str, str]:
        """Source of every text model by its name; the defaults too, where they are not of the catalogue."""
        named = dict(text_entry(entry) for entry in self.text_models)
        defaults = (self.default_embedding_model, self.default_reranking_model)
        others = [name for name in defaults if name and name.partition(":")[0] not in CATALOGUE]
        return {name: name for name in others} | named

    def max_texts(self, kind: Kind) -> int:
        """Texts of a request at most."""
        return self.max_reranking_batch_size if kind == "reranking" else self.max_embedding_batch_size

    @property
    def masked_redis_url(self) -> str:
        """The address of Redis without its password."""
        if self.redis_url is None:
            return "embedded"
        address, _, query = self.redis_url.partition("?")
        scheme, _, rest = address.partition("://")
        netloc, slash, path = rest.partition("/")
        host = netloc.rpartition("@")[2]
        user = "***@" if host != netloc else ""
        masked_query = "?***" if query else ""  # a password may stand there too
        return f"{scheme}://{user}{host}{slash}{path}{masked_query}"

    @property
    def jobs_url(self) -> str:
        """Where the jobs' files are."""
        return self.output_url or str(self.data_dir / "jobs")

    def make_folders(self) -> None:
        """Makes the data folder, for this user alone, and tries to write there.

        Raises:
            SettingsError: it cannot be made or written.
        """
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=self.data_dir):
                pass
        except OSError as error:
            raise SettingsError(f"DATA_DIR: {self.data_dir} cannot be written ({error.strerror})") from None


def _is_origin(text: str) -> bool:
    """Whether a browser may send this as Origin; what it never sends would be let in by nobody, silently."""
    parts = urlsplit(text)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        return False
    is_whole = text == f"{parts.scheme}://{parts.netloc}" == text.lower() and not set("@*") & set(text)
    return bool(host) and is_whole and port != _USUAL_PORTS.get(parts.scheme, port)


class SettingsError(Exception):
    """One line a bad variable, naming it."""


def load_settings() -> Settings:
    """The settings of this process.

    Raises:
        SettingsError: a value is of the wrong kind or out of bounds.
    """
    try:
        return Settings()
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False):
            name = f"{str(problem['loc'][0]).upper()}: " if problem["loc"] else ""
            # A value may be a secret (REDIS_URL holds a password), so it is the reason that is shown
            lines.append(f"{name}{problem['msg'].removeprefix('Value error, ')}")
        raise SettingsError("\n".join(lines)) from None


def load_settings_or_exit() -> Settings:
    """As `load_settings`, for a start: the reason goes to standard error and the process ends."""
    try:
        return load_settings()
    except SettingsError as error:
        print(f"bad settings, the service does not start:\n{error}", file=sys.stderr)
        raise SystemExit(2) from None


def pin_models(versions: Sequence[str], texts: Mapping[str, str]) -> dict[str, str]:
    """Fixes MODELS and TEXT_MODELS for the processes that this one starts, and returns them.

    versions: `name:version` of each protein model. texts: tag of each text model. A runner that is restarted later
    must serve the version that the start resolved, whatever was imported since.
    """
    pinned = {"MODELS": ",".join(versions) or NO_MODELS}
    if texts:
        pinned["TEXT_MODELS"] = ",".join(f"{name}={tag}" for name, tag in texts.items())
    os.environ.update(pinned)
    return pinned


def pin_metrics_dir(settings: Settings) -> Path:
    """The folder in which this process counts, and those that it starts; it is made by the first of them.

    BentoML's own folder is emptied whenever another service of the same user starts.
    """
    folder = settings.metrics_dir
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="pes-metrics-"))
        atexit.register(_delete_as, os.getpid(), folder)
        os.environ["METRICS_DIR"] = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    return folder


def _delete_as(pid: int, folder: Path) -> None:
    """At the end of the process that made it, not of a fork."""
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)
