"""Embeddings in Redis: one key, one format, and what happens when Redis is away."""

from __future__ import annotations

import hashlib
import logging
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import redis
import redis.asyncio
from isal import igzip_lib, isal_zlib

from serving.measures import measures_of_process
from serving.redis import CACHE_PREFIX, REDIS_ERRORS, STATS_KEY, Pause
from serving.tasks import apart
from serving.threads import run_to_its_end

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
# magic, format version, dtype, whether deflated, number of dimensions; the dimensions follow as uint32
_HEADER = struct.Struct("<2sBBBB")
_MAGIC = b"PE"
_INFLATE_ERROR: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]  # the stub calls it an instance
_ISAL_LEVELS = (0, 1, 1, 1, 2, 2, 2, 3, 3, 3)  # of zlib's 0 to 9; 0 deflates nothing and does not get there
_DTYPES = (np.dtype(np.float16), np.dtype(np.float32))

SCAN_COUNT = 1000
EXACT_COUNT_LIMIT = 10_000  # keys, up to which they are counted one by one


@dataclass(frozen=True)
class KeyParts:
    """Everything but the sequence that changes an embedding; the layer is the last one.

    window: residues that are computed at once, which changes the embeddings of longer sequences alone.
    """

    model: str
    version: str
    precision: str
    dtype: str
    pooled: bool
    window: int | None = None

    def settings(self, length: int) -> str:
        """What is asked of a sequence of that length, in the form of a key."""
        pooling = "mean" if self.pooled else "residues"
        window = f"_windows{self.window}" if self.window is not None and length > self.window else ""
        return f"{self.precision}_{self.dtype}_last_{pooling}{window}"


@dataclass(frozen=True)
class TextKeyParts:
    """The same for a text. max_tokens: a limit below the model's, behind which it is cut off or refused."""

    model: str
    version: str
    precision: str
    prompt_name: str | None
    truncate: bool
    max_tokens: int | None

    def settings(self, length: int) -> str:  # noqa: ARG002
        """What is asked of a text, in the form of a key."""
        end = f"{'cut' if self.truncate else 'whole'}{self.max_tokens or ''}"
        return f"{self.precision}_text_{end}_{'default' if self.prompt_name is None else f'by-{self.prompt_name}'}"


def cache_key(parts: KeyParts | TextKeyParts, sequence: str) -> str:
    """The one place where a key is made. It begins with the model's name, so that patterns can name models."""
    digest = hashlib.blake2b(sequence.encode(), digest_size=20).hexdigest()
    settings = parts.settings(len(sequence))
    return f"{CACHE_PREFIX}{parts.model}_{parts.version}_{settings}_f{FORMAT_VERSION}_{digest}"


def encode(embedding: np.ndarray, level: int) -> bytes:
    """An embedding as bytes; no pickle. `level` as zlib's: 0 for none, 9 for the most."""
    shape = struct.pack(f"<{embedding.ndim}I", *embedding.shape)
    header = _HEADER.pack(_MAGIC, FORMAT_VERSION, _DTYPES.index(embedding.dtype), int(level > 0), embedding.ndim)
    raw = np.ascontiguousarray(embedding).tobytes()
    return header + shape + (isal_zlib.compress(raw, _ISAL_LEVELS[level]) if level else raw)


def decode(value: bytes) -> np.ndarray | None:
    """The embedding in a value, or None where the value is none of ours."""
    try:
        magic, version, dtype, is_deflated, num_dimensions = _HEADER.unpack_from(value)
        if magic != _MAGIC or version != FORMAT_VERSION or num_dimensions > 2:
            return None
        shape = struct.unpack_from(f"<{num_dimensions}I", value, _HEADER.size)
        payload = memoryview(value)[_HEADER.size + 4 * num_dimensions :]
        raw = isal_zlib.decompress(payload) if is_deflated else payload
        return np.frombuffer(raw, _DTYPES[dtype]).reshape(shape)
    except (struct.error, _INFLATE_ERROR, IndexError, ValueError):
        return None


class Cache:
    """Look-ups and writes in bulk. While Redis is down every look-up is a miss and every write is dropped.

    Args:
        client: of Redis; it may be unreachable.
        ttl_s: seconds that an embedding is kept.
        level: of values, as zlib's.
    """

    def __init__(self, client: redis.asyncio.Redis, ttl_s: float, level: int) -> None:
        self.client = client
        self.num_errors = 0
        self._ttl_s = int(ttl_s)
        self._level = level
        self._measures = measures_of_process()
        self._uncounted = {"hits": 0, "misses": 0}
        self._away = Pause()
        self._full = Pause()  # it takes no writes, while look-ups go on

    async def get_many(self, keys: Sequence[str]) -> list[np.ndarray | None]:
        """One MGET; None for each key that is not there."""
        # Apart: redis-py, by asyncio.wait_for of Python 3.11, forgets a cancellation that comes while it sends
        values = await apart(self._fetch(keys)) if keys and not self._away.is_on else None
        if values is None:
            return [None] * len(keys)
        size_bytes = sum(len(value) for value in values if value is not None)
        self._measures.read_bytes.inc(size_bytes)
        return await run_to_its_end(
            lambda: [None if value is None else decode(value) for value in values], size_bytes
        )

    async def _fetch(self, keys: Sequence[str]) -> list[Any] | None:
        try:
            values: list[Any] = await self.client.mget(keys)
        except REDIS_ERRORS as error:
            self._note(error, self._away)
            return None
        self._away.reset()
        return values

    async def put_many(self, embeddings: Mapping[str, np.ndarray]) -> None:
        """One pipelined write."""
        if not embeddings or self._away.is_on or self._full.is_on:
            return
        values = await run_to_its_end(
            lambda: {key: encode(embedding, self._level) for key, embedding in embeddings.items()},
            size_bytes=sum(embedding.nbytes for embedding in embeddings.values()),
        )
        pipeline = self.client.pipeline(transaction=False)
        for key, value in values.items():
            pipeline.set(key, value, ex=self._ttl_s)
        try:
            await pipeline.execute()
            self._full.reset()
            self._measures.written_bytes.inc(sum(map(len, values.values())))
        except REDIS_ERRORS as error:
            self._note(error, self._full if isinstance(error, redis.ResponseError) else self._away)

    def count(self, model: str, hits: int, misses: int) -> None:
        """Of look-ups, by sequence; gathered here, as a write for each request would take longer than a hit."""
        self._measures.hits.labels(model).inc(hits)
        self._measures.misses.labels(model).inc(misses)
        self._uncounted["hits"] += hits
        self._uncounted["misses"] += misses

    async def write_counts(self) -> None:
        """What was counted since the last time goes to Redis; where Redis is away, it is kept for later."""
        counts = {name: count for name, count in self._uncounted.items() if count}
        if not counts or self._away.is_on or self._full.is_on:
            return
        self._uncounted = {"hits": 0, "misses": 0}
        pipeline = self.client.pipeline(transaction=False)
        for name, count in counts.items():
            pipeline.hincrby(STATS_KEY, name, count)
        try:
            await pipeline.execute()
        except REDIS_ERRORS as error:
            self._note(error, self._full if isinstance(error, redis.ResponseError) else self._away)
            for name, count in counts.items():
                self._uncounted[name] += count

    async def clear(self, pattern: str) -> int:
        """Deletes the cache keys that match a glob behind the cache's own prefix; nothing else can match.

        Returns:
            How many were deleted.
        Raises:
            redis.RedisError, OSError: Redis does not answer.
        """
        deleted = 0
        batch: list[bytes] = []
        async for key in self.client.scan_iter(match=CACHE_PREFIX + pattern, count=SCAN_COUNT):
            batch.append(key)
            if len(batch) >= SCAN_COUNT:
                deleted += await self.client.unlink(*batch)
                batch.clear()
        if batch:
            deleted += await self.client.unlink(*batch)
        return deleted

    async def statistics(self) -> dict[str, Any]:
        """Counts since the cache was made, and what Redis says of itself. Other workers' are a second old at most.

        `total_keys` is exact up to EXACT_COUNT_LIMIT keys in the database, and all of them above that.

        Raises:
            redis.RedisError, OSError: Redis does not answer.
        """
        await apart(self.write_counts())
        pipeline = self.client.pipeline(transaction=False)
        pipeline.hgetall(STATS_KEY)
        pipeline.dbsize()
        pipeline.info()
        counts, total_keys, info = await pipeline.execute()
        if total_keys <= EXACT_COUNT_LIMIT:
            found = self.client.scan_iter(match=CACHE_PREFIX + "*", count=SCAN_COUNT)
            total_keys = len({key async for key in found})
        hits, misses = int(counts.get(b"hits", 0)), int(counts.get(b"misses", 0))
        return {
            "total_keys": total_keys,
            "memory_usage": f"{info['used_memory'] / 1e6:.1f}MB",
            "hit_rate": round(hits / (hits + misses), 4) if hits + misses else 0.0,
            "total_requests": hits + misses,
            "cache_hits": hits,
            "cache_misses": misses,
            "version": info["redis_version"],
        }

    def _note(self, error: Exception, pause: Pause) -> None:
        self.num_errors += 1
        self._measures.redis_errors.labels("cache").inc()
        pause.begin()
        logger.warning("Redis failed (%s: %s); going on without the cache", type(error).__name__, error)
