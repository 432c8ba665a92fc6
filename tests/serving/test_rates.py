"""Requests and tokens a minute, counted in a real Redis; no test waits for a minute to be over."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from prometheus_client import REGISTRY

from scripts.local_service import free_port
from serving.errors import RateLimited
from serving.keys import Caller
from serving.ledger import Ledger
from serving.rates import RateLimits
from serving.redis import LIMITS_PREFIX
from serving.settings import Settings
from serving.tasks import settle


def of(name: str) -> Ledger:
    return Ledger(caller=Caller(name))


@pytest.fixture
async def make(client: redis.asyncio.Redis, redis_url: str, data_dir: Path) -> AsyncIterator[Any]:
    """Makes limits, as several gateway workers do, on an empty Redis."""
    made: list[RateLimits] = []

    def limits(requests: int | None = None, tokens: int | None = None) -> RateLimits:
        settings = Settings(
            redis_url=redis_url, data_dir=data_dir, requests_per_minute=requests, tokens_per_minute=tokens
        )
        made.append(RateLimits(settings))
        return made[-1]

    yield limits
    await settle()
    for one in made:
        await one.aclose()


def limited(kind: str) -> float:
    return REGISTRY.get_sample_value("rate_limited_requests_total", {"limit": kind}) or 0.0


def failures() -> float:
    return REGISTRY.get_sample_value("redis_errors_total", {"use": "limits"}) or 0.0


async def test_as_many_requests_as_are_allowed_are_let_in_and_the_next_is_told_when_to_come(make: Any) -> None:
    limits, before = make(requests=3), limited("requests")
    for left in (2, 1, 0):
        ledger = of("alice")
        await limits.take_request(ledger)
        assert ledger.headers["ratelimit-policy"] == '"requests";q=3;w=60'
        assert re.fullmatch(rf'"requests";r={left};t=\d+', ledger.headers["ratelimit"])
    ledger = of("alice")
    with pytest.raises(RateLimited, match=r"^3 requests a minute are allowed; try again in \d+ s$") as refused:
        await limits.take_request(ledger)
    assert refused.value.retry_after_s is not None
    assert 1 <= refused.value.retry_after_s <= 60
    assert ledger.headers["ratelimit"].startswith('"requests";r=0;t=')
    assert limited("requests") == before + 1


async def test_each_caller_has_his_own(make: Any) -> None:
    limits = make(requests=1)
    await limits.take_request(of("alice"))
    await limits.take_request(of("bob"))
    for name in ("alice", "bob"):
        with pytest.raises(RateLimited):
            await limits.take_request(of(name))


async def test_all_workers_count_together(make: Any) -> None:
    workers = [make(requests=4), make(requests=4)]
    for turn in range(4):
        await workers[turn % 2].take_request(of("alice"))
    for worker in workers:
        with pytest.raises(RateLimited):
            await worker.take_request(of("alice"))


async def test_requests_that_come_together_are_not_let_in_twice(make: Any) -> None:
    limits = make(requests=5)
    outcomes = await asyncio.gather(*(limits.take_request(of("alice")) for _ in range(20)), return_exceptions=True)
    assert sum(outcome is None for outcome in outcomes) == 5
    assert sum(isinstance(outcome, RateLimited) for outcome in outcomes) == 15


async def test_tokens_are_counted_by_number(make: Any) -> None:
    limits, ledger = make(tokens=100), of("alice")
    await limits.take_tokens(ledger, 60)
    assert ledger.headers["ratelimit"].startswith('"tokens";r=40;t=')
    with pytest.raises(RateLimited, match="100 tokens a minute"):
        await limits.take_tokens(of("alice"), 41)
    await limits.take_tokens(of("alice"), 40)  # what was refused was not counted


async def test_what_the_cache_has_costs_nothing(make: Any) -> None:
    limits, ledger = make(tokens=1), of("alice")
    await limits.take_tokens(ledger, 1)
    await limits.take_tokens(ledger, 0)


async def test_a_request_of_more_than_a_minutes_tokens_takes_the_whole_minute(make: Any) -> None:
    limits = make(tokens=10)
    await limits.take_tokens(of("alice"), 1_000_000)
    with pytest.raises(RateLimited):
        await limits.take_tokens(of("alice"), 1)


async def test_both_limits_are_told_of_in_one_list(make: Any) -> None:
    limits, ledger = make(requests=2, tokens=10), of("alice")
    await limits.take_request(ledger)
    await limits.take_tokens(ledger, 3)
    assert ledger.headers["ratelimit-policy"] == '"requests";q=2;w=60, "tokens";q=10;w=60'
    assert re.fullmatch(r'"requests";r=1;t=\d+, "tokens";r=7;t=\d+', ledger.headers["ratelimit"])


async def test_limits_of_the_same_number_are_counted_apart(make: Any) -> None:
    limits = make(requests=2, tokens=2)
    await limits.take_tokens(of("alice"), 2)
    for _ in range(2):
        await limits.take_request(of("alice"))


async def test_without_limits_nothing_is_counted(make: Any, client: redis.asyncio.Redis) -> None:
    limits, ledger = make(), of("alice")
    for _ in range(3):
        await limits.take_request(ledger)
        await limits.take_tokens(ledger, 1_000_000)
    assert ledger.headers == {}
    assert await client.keys(LIMITS_PREFIX + "*") == []


async def test_what_is_counted_stands_under_its_own_prefix_and_goes_by_itself(
    make: Any, client: redis.asyncio.Redis
) -> None:
    await make(requests=5).take_request(of("alice"))
    keys: list[Any] = await client.keys("*")
    assert keys
    for key in keys:
        assert key.decode().startswith(LIMITS_PREFIX)
        assert 0 < await client.ttl(key) <= 120


async def test_a_name_cannot_reach_the_count_of_another(make: Any) -> None:
    limits = make(requests=1)
    for name in ("a", "a/60", "a/1", "b"):
        await limits.take_request(of(name))


def strict(data_dir: Path, address: str) -> contextlib.AbstractAsyncContextManager[RateLimits]:
    """One of each a minute, by a Redis that may not be there."""
    settings = Settings(redis_url=address, data_dir=data_dir, requests_per_minute=1, tokens_per_minute=1)
    return contextlib.aclosing(RateLimits(settings))


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_where_redis_is_not_there_everybody_is_let_in_without_delay(data_dir: Path, kind: str) -> None:
    address = f"redis://127.0.0.1:{free_port()}" if kind == "tcp" else f"unix://{data_dir}/nobody.sock"
    before, started = failures(), time.monotonic()
    async with strict(data_dir, address) as limits:
        for _ in range(20):
            ledger = of("alice")
            await limits.take_request(ledger)
            await limits.take_tokens(ledger, 1000)
            assert ledger.headers == {}
    assert time.monotonic() - started < 1.0
    assert failures() > before


async def test_where_redis_hangs_one_request_waits_for_it_and_the_others_do_not(data_dir: Path) -> None:
    """A server that takes connections and never answers."""
    taken: list[asyncio.StreamWriter] = []

    async def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(writer)

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with strict(data_dir, f"redis://127.0.0.1:{port}") as limits:
        started = time.monotonic()
        await limits.take_request(of("alice"))
        waited_s = time.monotonic() - started
        for _ in range(20):
            await limits.take_request(of("alice"))
            await limits.take_tokens(of("alice"), 5)
        assert time.monotonic() - started < waited_s + 0.5
        assert waited_s < 5.0
    for writer in taken:
        writer.close()
        await writer.wait_closed()
    server.close()


async def test_a_client_who_leaves_while_he_is_counted_ends_at_once(make: Any) -> None:
    limits = make(requests=1000)
    for _ in range(20):
        task = asyncio.create_task(limits.take_request(of("alice")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})  # what is counted for him goes on
    await limits.take_request(of("alice"))
