"""More than the service can do: what it refuses, what it gives up, and that it goes on."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from scripts.local_service import LocalService
from tests.served.conftest import SETTINGS, Served

MODEL = "esm2_t6_8M"
COMPUTE = f"/embeddings/compute/{MODEL}"
NATIVE = "/encode"
GOOD = "MKTAYIAKQRQISFVKSHFSRQ"
BODY_BYTES = 100_000
MAX_REQUESTS = 3

# Everything that a request can run into, small: one sequence is a batch, and two that wait fill the queue
TIGHT = SETTINGS | {
    "GATEWAY_WORKERS": "1",
    "BATCH_QUEUE_ENABLED": "false",
    "MAX_QUEUE_TOKENS": "64",
    "MAX_CONCURRENT_REQUESTS": str(MAX_REQUESTS),
    "MAX_BODY_MB": str(BODY_BYTES / 1e6),
}


@pytest.fixture(scope="module")
def tight(stored_models: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """A service that refuses early."""
    with LocalService(tmp_path_factory.mktemp("tight"), TIGHT) as service:
        yield service


@pytest.fixture
def http(tight: LocalService) -> Iterator[httpx.Client]:
    """A client of it, while nothing is under way there."""
    with httpx.Client(base_url=tight.url, timeout=120) as http:
        until(lambda: is_idle(http))
        yield http


def batcher(http: httpx.Client) -> dict[str, int]:
    """The runner's counters now."""
    reply = http.get("/embeddings/model/info", params={"model": MODEL})
    assert reply.status_code == 200, reply.text
    counters: dict[str, int] = reply.json()["batcher"]
    return counters


def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_idle(http: httpx.Client) -> bool:
    counters = batcher(http)
    return counters["queue_items"] == counters["inflight_batches"] == 0


def long_sequences(seed: int, count: int, length: int) -> list[str]:
    """Different from all others, so that no cache helps."""
    letters = np.random.default_rng(seed).choice(list("ACDEFGHIKLMNPQRSTVWY"), (count, length))
    return ["".join(row) for row in letters]


def large_body(seed: int) -> dict[str, Any]:
    """Work for seconds: a call holds ten of these sequences, and two run at a time."""
    return {"sequences": long_sequences(seed, 80, 1000)}


def open_request(tight: LocalService, body: Any, num_bytes: int | None = None) -> closing[socket.socket]:
    """A request that is sent, all or in part, and whose reply is not read; its connection is closed at the end."""
    address = urlsplit(tight.url)
    content = json.dumps(body).encode()
    head = (
        f"POST {COMPUTE} HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    )
    connection = socket.create_connection((address.hostname or "", address.port or 0))
    connection.sendall(head.encode() + content[:num_bytes])
    return closing(connection)


@pytest.mark.parametrize("path", [COMPUTE, NATIVE])
def test_a_request_whose_time_is_over_is_told_so_and_its_work_is_dropped(http: httpx.Client, path: str) -> None:
    before = batcher(http)
    body = large_body(len(path)) | ({"model": MODEL} if path == NATIVE else {})
    reply = http.post(path, json=body, headers={"X-Request-Timeout": "0.5"})
    assert reply.status_code == 504
    if path == COMPUTE:  # BentoML keeps what it says of errors of 500 and above to itself
        assert reply.json()["error"] == "Deadline exceeded"
        assert "took" in reply.json()["detail"]
    until(lambda: is_idle(http))
    after = batcher(http)
    assert after["num_abandoned"] > before["num_abandoned"]
    assert after["num_items"] - before["num_items"] < 40, "of 80"
    assert http.post(COMPUTE, json={"sequences": [GOOD]}).status_code == 200


def test_a_time_limit_that_is_long_enough_changes_nothing(http: httpx.Client) -> None:
    reply = http.post(COMPUTE, json={"sequences": [GOOD[::-1]]}, headers={"X-Request-Timeout": "60"})
    assert reply.status_code == 200


def test_a_time_limit_that_nothing_can_keep_is_said(http: httpx.Client) -> None:
    http.post("/embeddings/cache/clear")
    reply = http.post(COMPUTE, json={"sequences": [GOOD + "M"]}, headers={"X-Request-Timeout": "1e-6"})
    assert (reply.status_code, reply.json()["error"]) == (504, "Deadline exceeded")


def test_the_work_for_a_client_who_leaves_is_dropped(tight: LocalService, http: httpx.Client) -> None:
    before = batcher(http)
    outputs = tight.log.parent / "outputs"
    files = set(outputs.iterdir())
    with open_request(tight, large_body(1) | {"pooled": False}):
        until(lambda: batcher(http)["queue_items"] > 0)
        assert set(outputs.iterdir()) > files
    until(lambda: is_idle(http))
    after = batcher(http)
    assert after["num_abandoned"] > before["num_abandoned"]
    assert after["num_items"] - before["num_items"] < 40, "of 80"
    until(lambda: set(outputs.iterdir()) == files)
    assert http.post(COMPUTE, json={"sequences": [GOOD]}).status_code == 200


def assert_is_too_large(reply: httpx.Response, limit_mb: float) -> None:
    assert reply.status_code == 413, reply.text
    assert reply.json() == {"error": "Body too large", "detail": f"the body is over {limit_mb:g} MB"}


@pytest.mark.parametrize("path", [COMPUTE, NATIVE])
def test_a_body_that_is_too_large_is_refused(http: httpx.Client, path: str) -> None:
    body = json.dumps({"sequences": [GOOD], "ids": ["x" * BODY_BYTES]}).encode()
    headers = {"content-type": "application/json"}
    assert_is_too_large(http.post(path, content=body, headers=headers), 0.1)
    chunks = (body[start : start + 1000] for start in range(0, len(body), 1000))
    assert_is_too_large(http.post(path, content=chunks, headers=headers), 0.1)


def test_a_body_of_the_limits_size_is_taken(http: httpx.Client) -> None:
    body = json.dumps({"sequences": [GOOD]}).encode().ljust(BODY_BYTES)
    headers = {"content-type": "application/json"}
    assert http.post(COMPUTE, content=body, headers=headers).status_code == 200
    assert_is_too_large(http.post(COMPUTE, content=body + b" ", headers=headers), 0.1)


def test_by_default_bodies_of_32_megabytes_are_taken(served: Served) -> None:
    content = b'{"sequences": []}'.ljust(32_000_000)
    assert served.http.post(COMPUTE, content=content).status_code == 422
    assert_is_too_large(served.http.post(COMPUTE, content=content + b" "), 32)


def test_a_full_queue_is_said_with_the_time_to_come_again(http: httpx.Client) -> None:
    before = batcher(http)["num_rejected_calls"]
    refused: dict[str, httpx.Response] = {}
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(http.post, COMPUTE, json={"sequences": long_sequences(2, 6, 2000)})
        until(lambda: batcher(http)["queue_cost"] >= 64)
        while len(refused) < 2 and not large.done():
            path = NATIVE if COMPUTE in refused else COMPUTE
            body = {"sequences": long_sequences(time.monotonic_ns(), 1, 20)}
            reply = http.post(path, json=body | ({"model": MODEL} if path == NATIVE else {}))
            assert reply.status_code in (200, 429), reply.text
            if reply.status_code == 429:
                refused[path] = reply
        assert large.result().status_code == 200, "what was let in is not refused later"
    assert set(refused) == {COMPUTE, NATIVE}
    assert refused[COMPUTE].json()["error"] == "Overloaded"
    for reply in refused.values():
        assert f"too much waits for runner_{MODEL}; try again in" in reply.text
    assert 1 <= int(refused[COMPUTE].headers["retry-after"]) <= 60
    assert batcher(http)["num_rejected_calls"] > before
    assert http.post(COMPUTE, json={"sequences": [GOOD + GOOD]}).status_code == 200


def test_more_requests_than_a_worker_takes_on_are_told_to_come_again(
    tight: LocalService, http: httpx.Client
) -> None:
    with ExitStack() as stack:
        halves = [
            stack.enter_context(open_request(tight, {"sequences": [GOOD]}, num_bytes=10))
            for _ in range(MAX_REQUESTS + 1)
        ]
        # One is refused at once; the bodies of the others never end
        answered, _, _ = select.select(halves, [], [], 30)
        (refused,) = answered
        assert refused.recv(1000).startswith(b"HTTP/1.1 429 ")
        for path in (COMPUTE, NATIVE):
            reply = http.post(path, json={"sequences": [GOOD]})
            assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
            assert reply.json()["detail"] == f"{MAX_REQUESTS} requests are being worked on; try again in 1 s"
        for path in ("/readyz", "/livez", "/embeddings/health", "/embeddings/models"):
            assert http.get(path).status_code == 200
    until(lambda: http.post(COMPUTE, json={"sequences": [GOOD]}).status_code == 200)
