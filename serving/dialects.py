"""JSON bodies of the systems whose clients are answered here as well: their names, their shapes.

Which is whose, and what differs, stands in docs/api.md.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from serving import dialect_examples
from serving.examples import UBIQUITIN
from serving.schemas import ErrorItem, ProteinLetters

MAX_INPUT_TEXT = 1024  # characters of `input_text`; source: the interface whose field it is

# What the document says of strings and lists is asked of them in serving/vectors.py, which names what is wrong
Words = Annotated[str, Field(json_schema_extra={"pattern": r"\S"})]
TokenId = Annotated[int, Field(json_schema_extra={"minimum": 0})]
# A list ends at its first bad item: a report of each would be far larger than the body
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, json_schema_extra={"minItems": 1})]
TokenLists = Annotated[list[TokenIds], Field(fail_fast=True, json_schema_extra={"minItems": 1})]
Strings = Annotated[list[Words], Field(fail_fast=True, json_schema_extra={"minItems": 1})]
TextOrPair = Annotated[list[Words], Field(fail_fast=True, json_schema_extra={"minItems": 1, "maxItems": 2})]
TextsOrPairs = Annotated[list[TextOrPair], Field(fail_fast=True, json_schema_extra={"minItems": 1})]
Proteins = Annotated[list[ProteinLetters], Field(fail_fast=True)]
Name = Annotated[str, Field(max_length=256)]


class _Body(BaseModel):
    """Fields that are not known are refused: a misspelt option would be one that is silently not taken."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class _Reply(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class ProteinPrediction(_Body):
    """POST /predict of one protein."""

    sequence: ProteinLetters = Field(description="a protein in one-letter code", examples=[UBIQUITIN])
    include_embeddings: bool = Field(True, description="the mean over residues, in the reply")
    include_attention: bool = Field(False, description="the shape of the last layer's attention, in the reply")
    model: Name | None = Field(None, description="a served protein model; default: the first")


class ProteinBatch(_Body):
    """POST /predict/batch."""

    sequences: Proteins = Field(min_length=1, max_length=64)
    include_embeddings: bool = True
    include_attention: bool = False
    model: Name | None = None


class PredictedProtein(_Reply):
    """One protein of a reply. gpu_id: 0 for the CPU, -1 where the embedding was in the cache."""

    sequence: str
    sequence_length: int
    embedding: list[float] | None = None
    embedding_dim: int | None = None
    attention_shape: list[int] | None = Field(None, description="[heads, tokens, tokens], special tokens included")
    gpu_id: int = Field(description="of the device that computed it; 0 for the CPU, -1: it was in the cache")


class ProteinPredicted(PredictedProtein):
    inference_time_ms: float
    model_name: str


class Distribution(_Reply):
    """Over devices; what was in the cache is under `cache`."""

    total_sequences: int
    num_gpus_used: int
    sequences_per_gpu: dict[str, int]
    gpu_assignments: dict[str, list[int]]


class ProteinBatchPredicted(_Reply):
    results: list[PredictedProtein]
    total_sequences: int
    total_inference_time_ms: float
    average_time_per_sequence_ms: float
    distribution_info: Distribution
    model_name: str


class TextClassification(_Body):
    """POST /predict of texts. max_length: tokens, behind which a text is too long."""

    texts: Words | Strings
    model_name: Name | None = Field(None, description="a served classifier; default: the first")
    max_length: int | None = Field(None, ge=1, description="tokens from which on a text is too long")
    truncate: bool = Field(False, description="cut off what is too long, instead of refusing it")


class Classified(_Reply):
    prediction: int
    probabilities: list[float]
    label: str
    text: str


class TextClassified(_Reply):
    """`results` is one object for one text, a list for a list."""

    request_id: str
    results: Classified | list[Classified]
    processing_time: float = Field(description="seconds")
    model_used: str


class InferenceParameters(_Body):
    """What huggingface_hub's client puts beside its inputs."""

    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None
    top_k: int | None = Field(None, ge=1)


class TeiPredict(_Body):
    """POST /predict as text-embeddings-inference has it: a text, a pair, or a list of lists of them."""

    inputs: Words | TextOrPair | TextsOrPairs
    raw_scores: bool = False
    truncate: bool = False
    truncation_direction: Literal["right", "Right"] | None = None
    parameters: InferenceParameters | None = None
    model: Name | None = None


class Label(_Reply):
    score: float
    label: str


class InputText(_Body):
    """POST /embed of one text."""

    input_text: Words = Field(max_length=MAX_INPUT_TEXT)
    model: Name | None = None
    truncate: bool = Field(False, description="cut off what is too long for the model, instead of refusing it")


class InputTextEmbedded(_Reply):
    embedding: list[float]
    model: str


class EmbedInput(_Body):
    """POST /embed of texts, or of proteins where the model is one of theirs."""

    input: Words | Strings
    model: Name | None = Field(None, description="default: DEFAULT_EMBEDDING_MODEL, else the first that is served")
    truncate: bool = False
    prompt_name: Name | None = Field(None, description="of the model's own prompts")


class Usage(_Reply):
    total_tokens: int


class InputEmbedded(_Reply):
    embeddings: list[list[float]]
    model: str
    usage: Usage


class TeiEmbed(_Body):
    """POST /embed as text-embeddings-inference has it; the reply is a list of vectors."""

    inputs: Words | Strings | TokenIds | TokenLists
    normalize: bool | None = Field(None, description="to length 1; default: as the model does it by itself")
    truncate: bool = False
    truncation_direction: Literal["right", "Right"] | None = None
    prompt_name: Name | None = None
    dimensions: int | None = Field(None, ge=1)
    model: Name | None = None


class TeiEmbedded(RootModel[list[list[float]]]):
    """A vector for each input."""


class Rerank(_Body):
    """POST /rerank."""

    query: Words
    documents: Strings = Field(min_length=1)
    model: Name | None = Field(None, description="default: DEFAULT_RERANKING_MODEL, else the first that is served")
    top_n: int | None = Field(None, ge=1)
    truncate: bool = False


class Ranked(_Reply):
    index: int
    score: float
    text: str | None = None


class Reranked(_Reply):
    results: list[Ranked]
    model: str


class TeiRerank(_Body):
    """POST /rerank as text-embeddings-inference has it; the reply is a list."""

    query: Words
    texts: Strings = Field(min_length=1)
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool = False
    truncation_direction: Literal["right", "Right"] | None = None
    model: Name | None = None


class OpenAIEmbeddings(_Body):
    """POST /v1/embeddings."""

    input: Words | Strings | TokenIds | TokenLists
    model: Name
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    user: Name | None = None


class OpenAIEmbedding(_Reply):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class OpenAIUsage(_Reply):
    prompt_tokens: int
    total_tokens: int


class OpenAIEmbedded(_Reply):
    object: Literal["list"] = "list"
    data: list[OpenAIEmbedding]
    model: str
    usage: OpenAIUsage


class OpenAIErrorDetail(_Reply):
    """`items` as in the errors of the other routes."""

    message: str
    type: str
    param: str | None
    code: str | None
    items: list[ErrorItem] | None = None


class OpenAIErrorBody(_Reply):
    """Body of every error below /v1."""

    model_config = ConfigDict(json_schema_extra={"example": dialect_examples.OPENAI_ERROR})

    error: OpenAIErrorDetail


class OpenAIModel(_Reply):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="when the weights came into the model store, in seconds of 1970")
    owned_by: str


class OpenAIModels(_Reply):
    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class ModelStatistics(_Reply):
    """Of one model since its runner's start: calls of the runner, which is not asked for what is in the cache.
    Latency is that of a call in the runner, in seconds; throughput is texts or sequences a second in the time that
    its devices were at work."""

    total_requests: int
    total_batches: int
    avg_batch_size: float
    avg_latency: float
    throughput: float


class ServiceHealth(_Reply):
    """GET /health: what each of the systems tells, in one object."""

    status: Literal["healthy", "degraded", "unhealthy"]
    message: str
    model: Name | None = Field(description="the default for embeddings")
    model_name: str | None
    model_loaded: bool
    models_loaded: list[str]
    models_failed: dict[str, str] = Field(description="and why they do not answer")
    device: str | None
    gpu_count: int
    gpu_ids: list[int]
    queue_size: int
    inflight_batches: int
    stats: dict[str, ModelStatistics]


class ServerInfo(_Reply):
    """GET /info, as text-embeddings-inference has it."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    auto_truncate: bool = False
    tokenization_workers: int = 1
    version: str
