"""What runs here and how it is, in the words of the systems whose clients are answered here."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response

from serving import dialect_examples
from serving.dialects import ModelStatistics, ServerInfo, ServiceHealth
from serving.errors import ModelNotLoaded, RunnerUnavailable
from serving.gateway import Gateway, gateway_of
from serving.routes.responses import ERRORS, shown
from serving.runners import ServedModel, ServedText
from serving.settings import VERSION

router = APIRouter(tags=["overview"])

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_TEI_POOLING = {None: "mean", "lasttoken": "last_token"}  # None: proteins, whose mean is not in a file
_ALIVE = shown({"status": "alive"}) | {
    503: {"model": dict[str, str], "description": "a runner is silent for good"}
}
_READY = shown({"status": "ready"}) | {
    503: {"model": dict[str, str], "description": "a runner does not answer, or none has its model"}
}
Status = Literal["healthy", "degraded", "unhealthy"]


@dataclass(frozen=True)
class Asked:
    """A model, and what its runner says of itself, or why it says nothing."""

    served: ServedModel | ServedText
    status: dict[str, Any]
    fault: RunnerUnavailable | None

    @property
    def name(self) -> str:
        return self.served.model.name


@router.get(
    "/health",
    response_model=ServiceHealth,
    responses=shown(dialect_examples.OVERALL_HEALTH) | {503: {"model": ServiceHealth}},
)
async def health(response: Response, gateway: Annotated[Gateway, Depends(gateway_of)]) -> ServiceHealth:
    """Status, devices, queues and statistics of every model. 503 when a runner does not answer."""
    asked = await ask_all(gateway)
    well = [one for one in asked if one.fault is None]
    status = state_of(asked)
    if status == "unhealthy":
        response.status_code = 503
    first = next((one for one in well if one.name == gateway.models.default_embedder), well[0] if well else None)
    devices = sorted({d["name"] for one in well for d in one.status["per_device"] if not d["is_lost"]})
    gpus = [int(device.partition(":")[2]) for device in devices if device.startswith("cuda")]
    if gateway.settings.runner_gpus:  # each runner has its own, and counts them from 0
        gpus = list(range(gateway.settings.runner_gpus * len(well)))
    return ServiceHealth(
        status=status,
        message=f"{len(well)} of {len(asked)} models answer, on {', '.join(devices) or 'nothing'}",
        model=gateway.models.default_embedder,
        model_name=next(iter(gateway.models.proteins), None),
        model_loaded=len(well) == len(asked),
        models_loaded=[one.name for one in well],
        models_failed={one.name: str(one.fault) for one in asked if one.fault is not None},
        device=first.status["devices"][0] if first is not None else None,
        gpu_count=len(gpus),
        gpu_ids=gpus,
        queue_size=sum(one.status["batcher"]["queue_items"] for one in well),
        inflight_batches=sum(one.status["batcher"]["inflight_batches"] for one in well),
        stats={one.name: statistics_of(one.status) for one in well},
    )


@router.get("/health/live", responses=_ALIVE)
async def live(response: Response, gateway: Annotated[Gateway, Depends(gateway_of)]) -> dict[str, str]:
    """Whether this process should go on, as /livez says it: 503 once a runner has been silent for too long."""
    if gateway.health.is_alive():
        return {"status": "alive"}
    response.status_code = 503
    return {"status": "not alive"}


@router.get("/ready", responses=_READY)
@router.get("/health/ready", responses=_READY)
async def ready(response: Response, gateway: Annotated[Gateway, Depends(gateway_of)]) -> dict[str, str]:
    """Whether requests can be answered, as /readyz says it."""
    if await gateway.is_ready():
        return {"status": "ready"}
    response.status_code = 503
    return {"status": "not ready"}


@router.get("/models", responses=shown(dialect_examples.ALL_MODELS))
async def models(gateway: Annotated[Gateway, Depends(gateway_of)]) -> dict[str, Any]:
    """Names by what the models are for, and every model under its own name: parameters, device, dtype and more."""
    asked = await ask_all(gateway)
    listed: dict[str, Any] = {
        "embedding_models": [*gateway.models.names_of("embedding"), *gateway.models.proteins],
        "reranking_models": gateway.models.names_of("reranking"),
        "classification_models": gateway.models.names_of("classification"),
    }
    return listed | {one.name: _describe(one) for one in asked}


@router.get(
    "/info",
    response_model=ServerInfo,
    responses=shown(dialect_examples.SERVER_INFO) | {404: ERRORS[404], 503: ERRORS[503]},
)
async def info(
    gateway: Annotated[Gateway, Depends(gateway_of)],
    model: Annotated[str | None, Query(description="default: that of /embed, else the first")] = None,
) -> ServerInfo:
    """One model and the limits of requests, as text-embeddings-inference tells it."""
    served = gateway.models.find_any(model or gateway.models.default_embedder or gateway.models.all[0].model.name)
    status = await served.status()
    s, facts = gateway.settings, status["facts"]
    is_text = "kind" in facts
    pooling = {"embedding": {"pooling": _TEI_POOLING.get(facts.get("pooling"), facts.get("pooling"))}}
    labels = {"id2label": dict(enumerate(facts.get("labels", [])))}
    kind = facts.get("kind", "embedding")
    return ServerInfo(
        model_id=served.model.name,
        model_sha=served.version,
        model_dtype=DTYPES[status["precision"]],
        model_type=pooling
        if kind == "embedding"
        else {"classifier" if kind == "classification" else "reranker": labels},
        max_concurrent_requests=s.max_concurrent_requests,
        max_input_length=facts["max_tokens"] if is_text else s.max_sequence_length,
        max_batch_tokens=status["batch_tokens"],
        max_client_batch_size=s.max_texts(kind) if is_text else s.max_sequences_per_request,
        version=VERSION,
    )


async def ask_all(gateway: Gateway) -> list[Asked]:
    """Every runner, at once."""
    return list(await asyncio.gather(*(_ask(served) for served in gateway.models.all)))


def state_of(asked: list[Asked]) -> Status:
    """degraded: some models could not be loaded, the others answer. unhealthy: one is silent, or all failed."""
    if all(one.fault is None for one in asked):
        return "healthy"
    failed = [one for one in asked if one.fault is not None]
    is_told = all(isinstance(one.fault, ModelNotLoaded) for one in failed)
    return "degraded" if is_told and len(failed) < len(asked) else "unhealthy"


def statistics_of(status: dict[str, Any]) -> ModelStatistics:
    """What a runner has done since its start: the one place where its counters become rates."""
    counts = status["batcher"]
    batches, calls, busy_s = counts["num_batches"], counts["num_calls"], counts["busy_s"]
    return ModelStatistics(
        total_requests=calls,
        total_batches=batches,
        avg_batch_size=round(counts["num_items"] / batches, 2) if batches else 0.0,
        avg_latency=round(counts["call_s"] / calls, 6) if calls else 0.0,
        throughput=round(counts["num_items"] / busy_s, 2) if busy_s else 0.0,
    )


async def _ask(served: ServedModel | ServedText) -> Asked:
    try:
        return Asked(served, await served.status(), None)
    except RunnerUnavailable as error:
        return Asked(served, {}, error)


def _describe(one: Asked) -> dict[str, Any]:
    about: dict[str, Any] = {
        "kind": getattr(one.served.model, "kind", "protein embedding"),
        "tag": one.served.tag,
        "description": one.served.description,
        "trained": one.served.is_trained,
    }
    if one.fault is not None:
        return about | {"status": "unavailable", "reason": str(one.fault)}
    facts = dict(one.status["facts"])
    return {
        **about,
        "status": "available",
        "device": one.status["devices"][0],
        "devices": one.status["devices"],
        "dtype": f"torch.{DTYPES[one.status['precision']]}",
        "precision_reason": one.status["precision_reason"],
        "backend": one.status["backend"],
        **facts,
    }
