"""For those who operate the service: what it is, how it is set, whether it is well."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Response

from serving.errors import RunnerUnavailable
from serving.gateway import Gateway, gateway_of
from serving.redis import REDIS_ERRORS
from serving.runners import ServedModel
from serving.schemas import Health, HealthLimits, ServiceConfig, ServiceInfo
from serving.settings import TITLE, VERSION

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
]


@router.get("/", response_model=ServiceInfo)
async def root(gateway: Annotated[Gateway, Depends(gateway_of)]) -> ServiceInfo:
    """What this is."""
    return ServiceInfo(
        service=TITLE,
        version=VERSION,
        status="running",
        supported_models=list(gateway.served),
        endpoints=ENDPOINTS,
        features={
            "configurable_via_env": True,
            "binary_downloads": True,
            "full_sequence_embeddings": True,
            "intelligent_caching": True,
            "redis_download_storage": True,
        },
    )


@router.get("/embeddings/health", response_model=Health, responses={503: {"model": Health}})
async def health(response: Response, gateway: Annotated[Gateway, Depends(gateway_of)]) -> Health:
    """Asks every component. 503 when a runner does not answer; without Redis the service is only degraded."""
    served_models = list(gateway.served.values())
    runners = await asyncio.gather(*(_ask_runner(served) for served in served_models))
    components = {s.model.runner: answer for s, answer in zip(served_models, runners, strict=True)}
    cache_component, cache_stats = await _ask_cache(gateway)
    status: Literal["healthy", "degraded", "unhealthy"] = "healthy"
    if not cache_component["responsive"]:
        status = "degraded"
    if not all(answer["model_ready"] for answer in runners):
        status = "unhealthy"
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


@router.get("/embeddings/config", response_model=ServiceConfig)
async def config(gateway: Annotated[Gateway, Depends(gateway_of)]) -> ServiceConfig:
    """The settings in force. Secrets are masked."""
    s = gateway.settings
    return ServiceConfig(
        sequence_limits={
            "min_length": s.min_sequence_length,
            "max_length": s.max_sequence_length,
            "max_sequences_per_request": s.max_sequences_per_request,
        },
        runner={
            "models": [served.tag for served in gateway.served.values()],
            "precision": s.precision,
            "use_kernels": s.use_kernels,
            "batch_tokens": s.batch_tokens,
            "batch_queue_enabled": s.batch_queue_enabled,
            "batch_queue_max_size": s.batch_queue_max_size,
            "batch_queue_max_wait_ms": s.batch_queue_max_wait_ms,
            "max_queue_tokens": s.max_queue_tokens,
            "gpus_per_runner": s.runner_gpus,
            "timeout_seconds": s.runner_timeout_s,
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
        },
    )


async def _ask_runner(served: ServedModel) -> dict[str, Any]:
    try:
        status = await served.status()
    except RunnerUnavailable as error:
        return {"connected": False, "server_ready": False, "model_ready": False, "reason": str(error)}
    return {
        "connected": True,
        "server_ready": True,
        "model_ready": True,
        "tag": served.tag,
        "trained": served.is_trained,
        "devices": status["devices"],
        "queue_size": status["batcher"]["queue_items"],
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
