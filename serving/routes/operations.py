"""For those who operate the service: what it is, how it is set, whether it is well."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse

from serving.auth import Operator
from serving.errors import ModelNotLoaded
from serving.gateway import Gateway, gateway_of
from serving.measures import exposition
from serving.redis import REDIS_ERRORS
from serving.routes.overview import Asked, ask_all, state_of, statistics_of
from serving.routes.responses import FORBIDDEN
from serving.schemas import Health, HealthLimits, ServiceConfig, ServiceInfo
from serving.settings import TITLE, VERSION
from serving.threads import run_to_its_end

router = APIRouter(tags=["operations"])

CACHE_TIMEOUT_S = 2.0
ENDPOINTS = [
    "/embeddings/compute/{model}",
    "/embeddings/download/{model}/numpy/{request_id}",
    "/embeddings/jobs/submit",
    "/embeddings/jobs",
    "/embeddings/jobs/{job_id}",
    "/embeddings/jobs/{job_id}/events",
    "/embeddings/jobs/{job_id}/result",
    "/embeddings/health",
    "/embeddings/cache/stats",
    "/embeddings/cache/clear",
    "/embeddings/model/info",
    "/embeddings/models",
    "/embeddings/config",
    "/predict",
    "/predict/batch",
    "/embed",
    "/rerank",
    "/v1/embeddings",
    "/v1/models",
    "/models",
    "/info",
    "/health",
    "/health/live",
    "/health/ready",
    "/ready",
    "/metrics",
]


@router.get("/", response_model=ServiceInfo)
async def root(gateway: Annotated[Gateway, Depends(gateway_of)]) -> ServiceInfo:
    """What this is."""
    return ServiceInfo(
        service=TITLE,
        version=VERSION,
        status="running",
        supported_models=[served.model.name for served in gateway.models.all],
        endpoints=ENDPOINTS,
        features={
            "configurable_via_env": True,
            "binary_downloads": True,
            "full_sequence_embeddings": True,
            "intelligent_caching": True,
            "redis_download_storage": False,
        },
    )


@router.get("/embeddings/health", response_model=Health, responses={503: {"model": Health}})
async def health(response: Response, gateway: Annotated[Gateway, Depends(gateway_of)]) -> Health:
    """Asks every component. 503 when a runner does not answer; degraded without Redis, or without some model."""
    asked = await ask_all(gateway)
    components = {one.served.model.runner: _tell(one) for one in asked}
    cache_component, cache_stats = await _ask_cache(gateway)
    status = state_of(asked)
    if status == "healthy" and not cache_component["responsive"]:
        status = "degraded"
    if status == "unhealthy":
        response.status_code = 503
    s = gateway.settings
    return Health(
        status=status,
        components={**components, "cache": cache_component},
        cache_stats=cache_stats,
        config_summary=HealthLimits(
            min_sequence_length=s.min_sequence_length,
            max_sequence_length=s.max_sequence_length,
            max_sequences_per_request=s.max_sequences_per_request,
        ),
    )


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(gateway: Annotated[Gateway, Depends(gateway_of)]) -> Response:
    """What Prometheus reads, of all processes of this deployment."""
    folder = gateway.metrics_dir
    return Response(await run_to_its_end(lambda: exposition(folder)), media_type=CONTENT_TYPE_LATEST)


@router.get("/embeddings/config", response_model=ServiceConfig, responses=FORBIDDEN, dependencies=[Operator])
async def config(gateway: Annotated[Gateway, Depends(gateway_of)]) -> ServiceConfig:
    """The settings in force, for operators. Secrets are masked."""
    s = gateway.settings
    return ServiceConfig(
        sequence_limits={
            "min_length": s.min_sequence_length,
            "max_length": s.max_sequence_length,
            "max_sequences_per_request": s.max_sequences_per_request,
        },
        runner={
            "models": [served.tag for served in gateway.models.all],
            "precision": s.precision,
            "use_kernels": s.use_kernels,
            "batch_tokens": s.batch_tokens,
            "batch_queue_enabled": s.batch_queue_enabled,
            "batch_queue_max_size": s.batch_queue_max_size,
            "batch_queue_max_wait_ms": s.batch_queue_max_wait_ms,
            "max_queue_tokens": s.max_queue_tokens,
            "text_precision": s.text_precision,
            "text_attention": s.text_attention,
            "text_compile": s.text_compile,
            "gpus_per_runner": s.runner_gpus,
            "timeout_seconds": s.runner_timeout_s,
        },
        texts={
            "default_embedding_model": gateway.models.default_embedder,
            "default_reranking_model": s.default_reranking_model,
            "max_embedding_batch_size": s.max_embedding_batch_size,
            "max_reranking_batch_size": s.max_reranking_batch_size,
        },
        redis={
            "url": s.masked_redis_url,
            "ttl_days": s.redis_ttl_days,
            "compression_level": s.redis_compression_level,
            "max_memory_mb": s.redis_max_memory_mb if s.redis_url is None else None,
        },
        jobs={
            "role": s.role,
            "place": urlsplit(s.jobs_url).scheme or "local",
            "concurrency": s.job_concurrency,
            "lease_seconds": s.job_lease_s,
            "result_ttl_hours": s.job_result_ttl_hours,
            "max_sequences_per_job": s.max_sequences_per_job,
            "max_job_mb": s.max_job_mb,
            "max_jobs_per_key": s.max_jobs_per_key,
            "max_job_sequences_per_key": s.max_job_sequences_per_key,
        },
        features={
            "binary_downloads": True,
            "full_embeddings": True,
            "log_level": s.log_level,
            "download_ttl_minutes": s.download_ttl_minutes,
            "gateway_workers": s.gateway_workers,
            "max_concurrent_requests": s.max_concurrent_requests,
            "max_body_mb": s.max_body_mb,
            "request_timeout_seconds": s.request_timeout_s,
            "shutdown_timeout_seconds": s.shutdown_timeout_secs,
            "liveness_silence_seconds": s.liveness_silence_s,
            "log_format": s.log_format,
            "traces": s.otel_exporter_otlp_endpoint is not None,
        },
        security={
            "api_keys": gateway.doorkeeper.keys.count,
            "admin_api_keys": gateway.doorkeeper.admin_keys.count,
            "health_open": s.health_open,
            "metrics_open": s.metrics_open,
            "docs_open": s.docs_open,
            "requests_per_minute": s.requests_per_minute,
            "tokens_per_minute": s.tokens_per_minute,
            "cors_origins": list(s.cors_origins),
        },
    )


def _tell(one: Asked) -> dict[str, Any]:
    if one.fault is not None:
        connected = isinstance(one.fault, ModelNotLoaded)
        return {"connected": connected, "server_ready": connected, "model_ready": False, "reason": str(one.fault)}
    return {
        "connected": True,
        "server_ready": True,
        "model_ready": True,
        "tag": one.served.tag,
        "trained": one.served.is_trained,
        "devices": one.status["devices"],
        "queue_size": one.status["batcher"]["queue_items"],
        "statistics": statistics_of(one.status).model_dump(),
    }


async def _ask_cache(gateway: Gateway) -> tuple[dict[str, Any], dict[str, Any]]:
    errors = gateway.cache.num_errors
    try:
        async with asyncio.timeout(CACHE_TIMEOUT_S):
            found = await gateway.cache.statistics()
    except (*REDIS_ERRORS, TimeoutError) as error:
        reason = f"{type(error).__name__}: {error}"
        return {"connected": False, "responsive": False, "reason": reason, "errors": errors}, {}
    stats = {name: found[name] for name in ("total_keys", "memory_usage", "hit_rate")}
    return {"connected": True, "responsive": True, "errors": errors}, stats
