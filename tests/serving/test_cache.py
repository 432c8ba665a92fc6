"""The cache on a real Redis: keys, values, counts, clearing, and life without Redis."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st

from serving.cache import Cache, KeyParts, cache_key, decode, encode
from serving.redis import CACHE_PREFIX

PARTS = KeyParts("esm2_mini", "v1", "fp32", "float16", pooled=True)


def vector(value: float) -> np.ndarray:
    return np.full(4, value, np.float16)


@pytest.mark.parametrize(
    "other",
    [
        replace(PARTS, model="prot_t5"),
        replace(PARTS, version="v2"),
        replace(PARTS, precision="bf16"),
        replace(PARTS, dtype="float32"),
        replace(PARTS, pooled=False),
    ],
)
def test_whatever_changes_the_answer_changes_the_key(other: KeyParts) -> None:
    assert cache_key(PARTS, "MKTAY") != cache_key(other, "MKTAY")
    assert cache_key(PARTS, "MKTAY") != cache_key(PARTS, "MKTAV")
    assert cache_key(PARTS, "MKTAY") == cache_key(replace(PARTS), "MKTAY")


def test_a_window_changes_the_key_of_longer_sequences_alone() -> None:
    four, five = replace(PARTS, window=4), replace(PARTS, window=5)
    assert len({cache_key(parts, "MKTAYV") for parts in (PARTS, four, five)}) == 3
    assert cache_key(five, "MKTAY") == cache_key(PARTS, "MKTAY") != cache_key(four, "MKTAY")


@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (0, 7)])
def test_a_value_comes_back_as_it_was(shape: tuple[int, ...], dtype: type, level: int) -> None:
    embedding: np.ndarray = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    decoded = decode(encode(embedding, level))
    assert decoded is not None
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded, embedding)


@given(st.binary(max_size=64))
def test_a_value_that_is_none_of_ours_is_no_embedding(value: bytes) -> None:
    assert decode(value) is None or value.startswith(b"PE")


def test_a_value_that_was_cut_is_no_embedding() -> None:
    value = encode(vector(1), 6)
    assert all(decode(value[:size]) is None for size in range(len(value)))


async def test_what_is_put_is_found_in_order(cache: Cache) -> None:
    await cache.put_many({"pes:cache:a": vector(1), "pes:cache:b": vector(2)})
    found = await cache.get_many(["pes:cache:b", "pes:cache:missing", "pes:cache:a"])
    assert [None if f is None else f[0] for f in found] == [2, None, 1]


async def test_values_expire(cache: Cache, client: redis.asyncio.Redis) -> None:
    await cache.put_many({"pes:cache:a": vector(1)})
    assert 0 < await client.ttl("pes:cache:a") <= 60


async def test_a_foreign_value_under_a_key_is_a_miss(cache: Cache, client: redis.asyncio.Redis) -> None:
    await client.set("pes:cache:a", b"\x80\x04N.")  # a pickle
    assert await cache.get_many(["pes:cache:a"]) == [None]


async def test_counts_of_several_workers_add_up(client: redis.asyncio.Redis) -> None:
    first, second = Cache(client, 60, 6), Cache(client, 60, 6)
    await first.put_many({"pes:cache:a": vector(1)})
    first.count("m", hits=3, misses=0)
    first.count("m", hits=0, misses=1)
    second.count("m", hits=1, misses=3)
    await second.write_counts()
    await second.write_counts()
    found = await first.statistics()
    assert (found["cache_hits"], found["cache_misses"], found["total_requests"]) == (4, 4, 8)
    assert (found["hit_rate"], found["total_keys"]) == (0.5, 1)


async def test_clearing_touches_cache_keys_only(cache: Cache, client: redis.asyncio.Redis) -> None:
    await client.mset({"other": 1, "pes:job:x": 1, "prot_t5_x": 1})
    await cache.put_many({f"{CACHE_PREFIX}prot_t5_{i}": vector(i) for i in range(2500)})
    await cache.put_many({f"{CACHE_PREFIX}esm2_{i}": vector(i) for i in range(3)})
    assert await cache.clear("prot_t5_*") == 2500
    assert await cache.clear("*") == 3
    assert sorted(await client.keys("*")) == [b"other", b"pes:job:x", b"prot_t5_x"]


async def test_without_redis_every_look_up_is_a_miss_and_counted(dead_client: redis.asyncio.Redis) -> None:
    cache = Cache(dead_client, 60, 6)
    assert await cache.get_many(["a", "b"]) == [None, None]
    await cache.put_many({"a": vector(1)})
    assert cache.num_errors == 1, "Redis is left alone for a moment after it failed"
    with pytest.raises(redis.ConnectionError):
        await cache.statistics()


async def test_what_is_counted_while_redis_is_away_is_written_when_it_is_back(
    client: redis.asyncio.Redis, dead_client: redis.asyncio.Redis
) -> None:
    cache = Cache(dead_client, 60, 6)
    cache.count("m", hits=2, misses=5)
    for _ in range(2):  # Redis fails, then is left alone
        await cache.write_counts()
    assert cache.num_errors == 1
    cache.client, cache._away = client, type(cache._away)()
    cache.count("m", hits=1, misses=0)
    found = await cache.statistics()
    assert (found["cache_hits"], found["cache_misses"]) == (3, 5)


async def test_a_full_redis_still_hands_out_what_it_has(client: redis.asyncio.Redis) -> None:
    cache = Cache(client, 60, 6)
    await cache.put_many({"a": vector(1)})
    kept = {**await client.config_get("maxmemory"), **await client.config_get("maxmemory-policy")}
    await client.config_set("maxmemory-policy", "noeviction")
    await client.config_set("maxmemory", 1)
    try:
        for _ in range(3):
            await cache.put_many({"b": vector(2)})
            found = await cache.get_many(["a", "b"])
            assert found[0] is not None
            assert found[1] is None
        assert cache.num_errors == 1, "writes are left alone for a moment after one was refused"
    finally:
        for name, value in kept.items():
            await client.config_set(str(name), str(value))
