"""SIGTERM under load."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.chaos.running import LARGE, arrays_of, assert_same, proteins, running, wait_until

pytestmark = pytest.mark.chaos


# What is under way has 30 s (SHUTDOWN_TIMEOUT_SECS), runners 5 more. Measured: 1.2 s where nothing is
STOPS_WITHIN_S = 40.0
CALL = 20  # sequences of 600 residues in a call at most


def outcome_of(answer: Future[httpx.Response]) -> str:
    """The status, or how the connection broke."""
    error = answer.exception()
    return str(answer.result().status_code) if error is None else type(error).__name__


def test_what_was_let_in_is_answered_before_the_service_ends(stored_model: None, data_dir: Path) -> None:
    requests = [proteins(LARGE, seed=n) for n in range(50, 52)]
    with running(data_dir) as service:
        expected = service.expect(requests)
        children = service.children()
        assert any("redis-server" in child.name() for child in children)
        with service.under_way(requests) as answers:
            started = time.monotonic()
            assert service.service.stop() == 0
            assert time.monotonic() - started < STOPS_WITHIN_S
            _, left = psutil.wait_procs(children, timeout=5)
            assert left == []
    for answer, right in zip(answers, expected, strict=True):
        assert_same(arrays_of(answer.result()), right)
    assert list((data_dir / "outputs").glob("*.part")) == []


def test_what_was_let_in_may_need_connections_that_are_not_there_yet(stored_model: None, data_dir: Path) -> None:
    """A request's first call goes alone, and two at a time behind it."""
    large = proteins(100, seed=80, length=600)
    with running(data_dir) as service, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(service.post, large)
        wait_until(lambda: service.batcher()["inflight_batches"] > 0, "its first call is under way")
        assert service.batcher()["num_items"] < CALL, "its first call is over"
        assert service.service.stop() == 0
    assert len(arrays_of(answer.result())) == len(large)


def test_what_takes_longer_than_it_may_is_told_so(stored_model: None, data_dir: Path) -> None:
    requests = [proteins(LARGE, seed=n) for n in range(60, 72)]
    with running(data_dir, SHUTDOWN_TIMEOUT_SECS="0.5") as service, service.under_way(requests) as answers:
        assert service.service.stop() == 0
        outcomes = [outcome_of(answer) for answer in answers]
    assert set(outcomes) <= {"200", "503"}
    told = [answer.result() for answer, outcome in zip(answers, outcomes, strict=True) if outcome == "503"]
    assert told, "12 batches took no longer than half a second"
    assert {reply.json()["error"] for reply in told} == {"Shutting down"}
    assert all("retry-after" in reply.headers for reply in told)


def test_who_comes_while_the_service_ends_is_answered_or_not_let_in(stored_model: None, data_dir: Path) -> None:
    """A reply is whole or there is none: nobody has a part of one."""
    with running(data_dir) as service:
        is_over = threading.Event()

        def ask(number: int) -> list[str]:
            outcomes = []
            while not is_over.is_set():
                number += 100
                with httpx.Client(base_url=service.service.url, timeout=30) as http:
                    try:
                        reply = service.post(proteins(1, seed=number), http)
                        outcomes.append("200" if reply.status_code == 200 else f"{reply.status_code} {reply.text}")
                        assert reply.status_code != 200 or len(arrays_of(reply)) == 1
                    except httpx.ConnectError:  # nobody listens any more
                        return outcomes
                    except (httpx.ReadError, httpx.RemoteProtocolError) as error:
                        # Fine where the connection was never accepted: then not a byte was answered
                        is_part = "complete message body" in str(error)
                        return [*outcomes, f"part of a reply: {error}"] if is_part else outcomes
            return outcomes

        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(ask, number) for number in range(8)]
            wait_until(lambda: service.batcher()["num_items"] > 40, "requests come and go")
            assert service.service.stop() == 0
            is_over.set()
            outcomes = {outcome for client in clients for outcome in client.result()}
        assert outcomes == {"200"}


def test_a_client_who_left_before_does_not_hold_the_service_up(stored_model: None, data_dir: Path) -> None:
    with running(data_dir) as service:
        children = service.children()
        with service.left_alone(proteins(100, seed=59, length=1000)):
            pass
        wait_until(lambda: service.batcher()["queue_items"] == 0, "what was left alone is dropped")
        started = time.monotonic()
        assert service.service.stop() == 0
        assert time.monotonic() - started < STOPS_WITHIN_S
        _, left = psutil.wait_procs(children, timeout=5)
        assert left == []
