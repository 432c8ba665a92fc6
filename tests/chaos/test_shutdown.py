"""SIGTERM under load."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path

import httpx
import psutil
import pytest

from tests.chaos.running import LARGE, arrays_of, assert_same, proteins, running, wait_until

pytestmark = pytest.mark.chaos


STOPS_WITHIN_S = 25.0  # measured: 0.6 s where nothing is under way, 8 s with 96 sequences of 300 on a busy machine


def outcome_of(answer: Future[httpx.Response]) -> str:
    """200, 503, or how the connection broke."""
    error = answer.exception()
    if error is None:
        return str(answer.result().status_code)
    assert isinstance(error, httpx.TransportError), error
    return "cut"


def test_the_service_ends_in_time_in_order_and_leaves_no_process(stored_model: None, data_dir: Path) -> None:
    requests = [proteins(LARGE, seed=n) for n in range(50, 54)]
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
        outcomes = [outcome_of(answer) for answer in answers]
    assert set(outcomes) <= {"200", "503", "cut"}
    for answer, outcome, right in zip(answers, outcomes, expected, strict=True):
        if outcome == "200":
            assert_same(arrays_of(answer.result()), right)
    assert list((data_dir / "outputs").glob("*.part")) == []


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
