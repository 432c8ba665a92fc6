"""Redis is killed, slow, or full."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from scripts.local_service import free_port
from tests.chaos.redis_server import RedisServer, delayed, is_running
from tests.chaos.running import PATIENCE_S, Running, arrays_of, assert_same, proteins, running, wait_until

pytestmark = pytest.mark.chaos

DELAY_S = 0.5
# measured: 3.0 s for a connection (two answers), a look-up, a write and a record, where nothing was connected
SLOW_WITHIN_S = 8.0
HEALTH_WITHIN_S = 5.0  # it gives up on Redis after 2 s


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def module_service(
    redis_server: RedisServer, stored_model: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("by-url")
    with running(folder, REDIS_URL=redis_server.url, GATEWAY_WORKERS="1") as service:
        yield service


@pytest.fixture
def by_url(module_service: Running) -> Iterator[Running]:
    """One gateway worker, and a Redis by REDIS_URL."""
    module_service.assert_well()
    yield module_service
    module_service.assert_well()
    assert_caching(module_service)


def assert_caching(service: Running, patience_s: float = PATIENCE_S) -> None:
    """In time: a worker leaves a Redis that failed alone for a while."""
    sequences = proteins(1, seed=time.monotonic_ns(), length=50)
    wait_until(lambda: service.summary(sequences)["cache_stats"]["total_hits"] == 1, "the cache works", patience_s)


@contextmanager
def steady_load(service: Running) -> Iterator[list[httpx.Response]]:
    """New sequences, one after another, as long as this is open; the replies so far."""
    is_over = threading.Event()
    replies: list[httpx.Response] = []

    def ask() -> None:
        with httpx.Client(base_url=service.service.url, timeout=30) as http:
            for seed in itertools.count(1_000_000):
                if is_over.is_set():
                    return
                replies.append(service.post(proteins(1, seed, length=20), http))

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield replies
        finally:
            is_over.set()
        asking.result()


def test_the_services_own_redis_is_started_again_and_has_lost_nothing(shared: Running) -> None:
    sequences = proteins(2, seed=60, length=50)
    expected = shared.embed(sequences)
    (server,) = [child for child in shared.children() if "redis-server" in child.name()]
    with steady_load(shared) as replies:
        shared.parent.suspend()  # it is who starts Redis again: not before the test has seen it gone
        try:
            server.kill()
            wait_until(lambda: not is_running(server), "redis-server is dead")
            health = shared.health()
            assert (health["status"], health["components"]["cache"]["connected"]) == ("degraded", False)
            assert_same(shared.embed(sequences), expected)
            assert shared.http.get("/readyz").status_code == 200
        finally:
            shared.parent.resume()
        wait_until(lambda: shared.health()["status"] == "healthy", "healthy")
        num_replies = len(replies)
        wait_until(lambda: len(replies) > num_replies, "the load goes on")
    assert {reply.status_code for reply in replies} == {200}
    wait_until(lambda: shared.summary(sequences)["cache_stats"]["total_hits"] == 2, "what was cached is there")
    (successor,) = [child for child in shared.children() if "redis-server" in child.name()]
    assert successor.pid != server.pid
    assert_same(shared.embed(sequences), expected)


def test_a_redis_by_url_may_be_killed_and_come_back(by_url: Running, redis_server: RedisServer) -> None:
    sequences = proteins(2, seed=61, length=50)
    expected = by_url.embed(sequences)
    assert by_url.summary(sequences)["cache_stats"]["total_hits"] == 2
    with steady_load(by_url) as replies:
        redis_server.kill()
        health = by_url.health()
        assert (health["status"], health["components"]["cache"]["connected"]) == ("degraded", False)
        reply = by_url.summary(sequences)
        assert reply["cache_stats"]["total_hits"] == 0
        assert by_url.http.get(reply["download_link"]).status_code == 200
        assert_same(by_url.embed(sequences), expected)
        redis_server.start()
        wait_until(lambda: by_url.health()["status"] == "healthy", "healthy")
        num_replies = len(replies)
        wait_until(lambda: len(replies) > num_replies, "the load goes on")
    assert {reply.status_code for reply in replies} == {200}


def test_a_slow_redis_slows_requests_down_by_a_bounded_time(by_url: Running, redis_server: RedisServer) -> None:
    requests = [proteins(2, seed, length=50) for seed in range(70, 78)]
    expected = by_url.expect(requests)
    redis_server.kill()
    elsewhere = free_port()
    redis_server.start(elsewhere)
    try:
        with delayed(redis_server.port, elsewhere, DELAY_S), ThreadPoolExecutor(len(requests)) as pool:
            for _ in range(2):
                started = time.monotonic()
                replies = list(pool.map(by_url.post, requests))
                assert time.monotonic() - started < SLOW_WITHIN_S
                for reply, right in zip(replies, expected, strict=True):
                    assert_same(arrays_of(reply), right)
            started = time.monotonic()
            by_url.summary(requests[0])
            assert time.monotonic() - started < SLOW_WITHIN_S
            started = time.monotonic()
            health = by_url.http.get("/embeddings/health")
            assert time.monotonic() - started < HEALTH_WITHIN_S
            assert health.status_code == 200
            assert by_url.http.get("/readyz").status_code == 200
    finally:
        redis_server.kill()
        redis_server.start()


def test_a_redis_that_does_not_answer_at_all_costs_one_wait(by_url: Running, redis_server: RedisServer) -> None:
    """Later requests do not wait for it again."""
    requests = [proteins(2, seed, length=50) for seed in (80, 81)]
    expected = by_url.expect(requests)
    with redis_server.hanging():
        started = time.monotonic()
        assert_same(by_url.embed(requests[0]), expected[0])
        assert time.monotonic() - started < HEALTH_WITHIN_S
        started = time.monotonic()
        assert_same(by_url.embed(requests[1]), expected[1])
        assert time.monotonic() - started < 1
        assert by_url.health()["status"] == "degraded"


def test_many_requests_that_wait_for_redis_together_count_as_one_failure(
    by_url: Running, redis_server: RedisServer
) -> None:
    """Redis is asked again after a second, not after half a minute."""
    requests = [proteins(1, seed, length=50) for seed in range(82, 98)]
    with redis_server.hanging(), ThreadPoolExecutor(len(requests)) as pool:
        assert {reply.status_code for reply in pool.map(by_url.post, requests)} == {200}
    assert_caching(by_url, patience_s=8)


def test_a_full_redis_is_read_and_not_written_and_nobody_gets_an_error(
    by_url: Running, redis_server: RedisServer
) -> None:
    cached, new = (proteins(2, seed, length=50) for seed in (90, 91))
    expected = by_url.expect([new])[0]
    by_url.embed(cached)
    assert by_url.summary(cached)["cache_stats"]["total_hits"] == 2
    num_errors = by_url.health()["components"]["cache"]["errors"]
    redis_server.client.config_set("maxmemory-policy", "noeviction")
    redis_server.client.config_set("maxmemory", 1)
    try:
        assert by_url.summary(cached)["cache_stats"]["total_hits"] == 2
        reply = by_url.summary(new)
        assert reply["cache_stats"]["total_hits"] == 0
        assert by_url.http.get(reply["download_link"]).status_code == 200
        assert_same(by_url.embed(new), expected)
        assert by_url.health()["components"]["cache"]["errors"] > num_errors
    finally:
        redis_server.client.config_set("maxmemory", 0)
    wait_until(lambda: by_url.summary(new)["cache_stats"]["total_hits"] == 2, "embeddings are kept again")
