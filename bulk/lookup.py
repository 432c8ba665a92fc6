"""The service's cache, asked for what a block needs. Nothing is written there: it is for interactive work."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import redis

from bulk.workload import Workload
from serving.cache import KeyParts, cache_key, decode
from serving.redis import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S, REDIS_ERRORS

logger = logging.getLogger(__name__)

KEYS_AT_ONCE = 256


class Lookup:
    """url: of the service's Redis. While it does not answer, every look-up is a miss."""

    def __init__(self, workload: Workload, precision: str, url: str) -> None:
        version = workload.tag.partition(":")[2]
        self._workload = workload
        self._parts = KeyParts(workload.row.base_name, version, precision, workload.dtype, workload.pooled)
        self._client = redis.Redis.from_url(
            url, socket_connect_timeout=CONNECT_TIMEOUT_S, socket_timeout=ANSWER_TIMEOUT_S
        )

    def find(self, sequences: Sequence[str]) -> dict[int, np.ndarray]:
        """The embeddings that are there, by place: (D,) if pooled, else (L, D)."""
        found: dict[int, np.ndarray] = {}
        keys = [cache_key(self._parts, sequence) for sequence in sequences]
        try:
            for start in range(0, len(keys), KEYS_AT_ONCE):
                values: list[Any] = self._client.mget(keys[start : start + KEYS_AT_ONCE])
                for place, value in enumerate(values, start):
                    embedding = None if value is None else decode(value)
                    if embedding is not None and self._fits(embedding, len(sequences[place])):
                        found[place] = embedding
        except REDIS_ERRORS as error:
            logger.warning("Redis failed (%s: %s); going on without the cache", type(error).__name__, error)
        return found

    def _fits(self, embedding: np.ndarray, length: int) -> bool:
        dim = self._workload.row.dim
        shape = (dim,) if self._workload.pooled else (length, dim)
        return embedding.shape == shape and embedding.dtype == self._workload.dtype
