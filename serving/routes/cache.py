"""Looking at the cache and clearing it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from serving.auth import Operator
from serving.errors import StoreUnavailable
from serving.gateway import Gateway, gateway_of
from serving.redis import REDIS_ERRORS
from serving.routes.responses import FORBIDDEN, NOT_LET_IN, Responses
from serving.schemas import CacheCleared, CacheCounts, CacheStatistics, ErrorBody, RedisInfo

router = APIRouter(prefix="/embeddings/cache", tags=["cache"])

_AWAY: Responses = {503: {"model": ErrorBody, "description": "Redis does not answer"}}


@router.get("/stats", response_model=CacheStatistics, responses=_AWAY)
async def statistics(gateway: Annotated[Gateway, Depends(gateway_of)]) -> CacheStatistics:
    """Hits, misses and size, over all gateway workers."""
    try:
        found = await gateway.cache.statistics()
    except REDIS_ERRORS as error:
        raise StoreUnavailable("Redis does not answer") from error
    version = found.pop("version")
    counts = CacheCounts(**found)
    info = RedisInfo(connected=True, responsive=True, version=version, used_memory=counts.memory_usage)
    return CacheStatistics(stats=counts, redis_info=info)


@router.post(
    "/clear", response_model=CacheCleared, responses=NOT_LET_IN | _AWAY | FORBIDDEN, dependencies=[Operator]
)
async def clear(
    gateway: Annotated[Gateway, Depends(gateway_of)],
    pattern: Annotated[str, Query(description="glob over cache keys", examples=["prot_t5_*"])] = "*",
) -> CacheCleared:
    """Deletes cached embeddings: all, or those whose key matches, e.g. `esm2_*` for one family.

    Only cache keys can match; downloads stay. For operators.
    """
    try:
        deleted = await gateway.cache.clear(pattern)
    except REDIS_ERRORS as error:
        raise StoreUnavailable("Redis does not answer") from error
    return CacheCleared(pattern=pattern, deleted_keys=deleted)
