"""JSON bodies as types. Names and shapes are the public interface; see docs/api.md."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving import examples
from serving.sequences import MAX_ID_LENGTH, PROTEIN_PATTERN, OnTooLong

MAX_LENGTH = 1_000_000  # of MAX_SEQUENCE_LENGTH at most

# What the document says of strings is not asked of them here: serving/sequences.py names each that is wrong
ProteinLetters = Annotated[str, Field(json_schema_extra={"pattern": PROTEIN_PATTERN})]
SequenceId = Annotated[str, Field(json_schema_extra={"maxLength": MAX_ID_LENGTH})]


class ComputeOptions(BaseModel):
    """What a compute request can ask for: in the query of FASTA text, inside a JSON body."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pooled: bool = Field(True, description="one vector a sequence (mean over residues); false: one a residue")
    dtype: Literal["float16", "float32"] = Field("float16", description="of the embeddings")
    max_length: int | None = Field(
        None,
        ge=1,
        le=MAX_LENGTH,
        description="residues from which on a sequence is too long; default and most: the service's",
    )
    on_too_long: OnTooLong = Field(
        "error",
        description="refuse a sequence that is too long, cut it off there, or compute it in overlapping windows",
    )


class ComputeRequest(ComputeOptions):
    """Body of a compute request in JSON."""

    model_config = ConfigDict(json_schema_extra={"example": examples.COMPUTE_REQUEST})

    sequences: list[ProteinLetters] = Field(min_length=1, description="proteins in one-letter code")
    ids: list[SequenceId] | None = Field(
        None, description="a name for each sequence; default sequence_0, sequence_1, ..."
    )


class CacheStats(BaseModel):
    """How a request met the cache: `total_hits` of `total_requests` sequences were in it."""

    hit_rate: float
    total_hits: int
    total_requests: int
    cache_misses: int


class Timing(BaseModel):
    """Milliseconds, and what was done in them."""

    total_ms: float
    cache_ms: float = Field(description="looking into the cache")
    inference_ms: float = Field(description="waiting for the runner")
    cache_hits: int
    runner_calls: int


class ModelSummary(BaseModel):
    """A model that is served."""

    runner: str
    embedding_dim: int
    description: str
    precision: str | None = Field(description="of the arithmetic; null while the runner does not answer")
    tag: str = Field(description="name:version in the BentoML model store")
    trained: bool
    warning: str | None = None


class ListedModel(ModelSummary):
    status: Literal["available", "unavailable"]


class ComputedWith(ModelSummary):
    """The model and the options that a request was computed with."""

    model: str
    sequence_length_range: str
    pooled: bool
    dtype: str
    shape_description: str


class SequenceResult(BaseModel):
    """What became of one sequence."""

    index: int
    id: str
    length: int
    cached: bool
    device: str | None = Field(None, description="on which it was computed; null if it was not")
    replaced: list[tuple[int, str]] = Field(description="(position from 1, letter) read as X by this model")
    truncated_from: int | None = Field(
        None, description="residues it had before it was cut off; null if it was not"
    )
    error: str | None = Field(None, description="why this sequence has no embedding")


class ComputeResponse(BaseModel):
    """Reply to a compute request; the embeddings are behind `download_link`."""

    model_config = ConfigDict(json_schema_extra={"example": examples.COMPUTE_RESPONSE})

    sequences: list[str] = Field(description="as they were read: white space, case and a final * cleaned")
    results: list[SequenceResult]
    cache_stats: CacheStats
    timing: Timing
    model_info: ComputedWith
    download_link: str | None = Field(description="of the npz; null if it could not be kept (see `warnings`)")
    warnings: list[str] = []


class DeviceInfo(BaseModel):
    """A device of a runner: what it has done, and how much it takes at a time now."""

    name: str
    num_batches: int
    num_items: int
    budget: int = Field(
        description="cost of a batch at most, in tokens; less than `batch_tokens` if memory is short"
    )
    cost_per_s: float = Field(description="tokens a second, in its latest batches")
    is_rated: bool = Field(
        description="these were enough to tell how fast it is; until then they are all there were"
    )
    inflight_batches: int
    is_lost: bool


class TensorInfo(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1 for a size that varies")


class ModelInfo(ModelSummary):
    """Everything about one served model."""

    model_config = ConfigDict(json_schema_extra={"example": examples.MODEL_INFO})

    model_type: str
    family: str
    num_layers: int
    source: str
    revision: str
    digest: str
    sequence_length_range: str
    replaced_residues: dict[str, str]
    precision_reason: str | None
    backend: str | None
    trained_length: int | None = Field(description="residues of the longest sequences in the model's training")
    devices: list[str]
    per_device: list[DeviceInfo]
    batcher: dict[str, int | float] = Field(description="counters since the runner's start, and what waits now")
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


class ServingLimits(BaseModel):
    min_sequence_length: int
    max_sequence_length: int
    max_sequences_per_request: int
    binary_downloads_enabled: bool = True
    download_ttl_minutes: float


class ModelList(BaseModel):
    model_config = ConfigDict(json_schema_extra={"example": examples.MODEL_LIST})

    available_models: dict[str, ListedModel]
    config: ServingLimits


class CacheCounts(BaseModel):
    """Since the cache was made, over all workers."""

    total_keys: int
    memory_usage: str
    hit_rate: float
    total_requests: int
    cache_hits: int
    cache_misses: int


class RedisInfo(BaseModel):
    connected: bool
    responsive: bool
    version: str
    used_memory: str


class CacheStatistics(BaseModel):
    model_config = ConfigDict(json_schema_extra={"example": examples.CACHE_STATISTICS})

    stats: CacheCounts
    redis_info: RedisInfo


class CacheCleared(BaseModel):
    model_config = ConfigDict(json_schema_extra={"example": examples.CACHE_CLEARED})

    status: Literal["cleared"] = "cleared"
    pattern: str
    deleted_keys: int


class HealthLimits(BaseModel):
    min_sequence_length: int
    max_sequence_length: int
    max_sequences_per_request: int


class Health(BaseModel):
    """healthy: all answer. degraded: computing works, without the cache or without some model. unhealthy: a runner
    does not answer."""

    model_config = ConfigDict(json_schema_extra={"example": examples.HEALTH})

    status: Literal["healthy", "degraded", "unhealthy"]
    components: dict[str, dict[str, Any]]
    cache_stats: dict[str, Any]
    config_summary: HealthLimits


class ServiceConfig(BaseModel):
    """The settings in force; secrets are masked."""

    model_config = ConfigDict(json_schema_extra={"example": examples.SERVICE_CONFIG})

    sequence_limits: dict[str, int]
    runner: dict[str, Any]
    texts: dict[str, Any]
    redis: dict[str, Any]
    jobs: dict[str, Any]
    features: dict[str, Any]
    security: dict[str, Any]


class ServiceInfo(BaseModel):
    model_config = ConfigDict(json_schema_extra={"example": examples.SERVICE_INFO})

    service: str
    version: str
    status: str
    supported_models: list[str]
    endpoints: list[str]
    features: dict[str, bool]


class ErrorItem(BaseModel):
    """What is wrong with one sequence or text."""

    index: int = Field(description="in the request, from 0")
    reason: str
    id: str | None = None
    position: int | None = Field(None, description="in the sequence, from 1, white space not counted")
    character: str | None = None


class ErrorBody(BaseModel):
    """Body of every error. `items` names each sequence that is wrong, with its position and character."""

    model_config = ConfigDict(json_schema_extra={"example": examples.ERROR})

    error: str
    detail: str
    items: list[ErrorItem] | None = None


class UnknownModelBody(BaseModel):
    """Body of an error where a model was asked for that is not served."""

    model_config = ConfigDict(json_schema_extra={"example": examples.UNKNOWN_MODEL})

    error: str
    detail: str
    known_models: list[str] | None = Field(None, description="those that are served")
