"""A runner is killed under load."""

from __future__ import annotations

import time
from contextlib import ExitStack

import psutil
import pytest

from tests.chaos.running import GATEWAY, LARGE, RUNNER, Running, arrays_of, assert_same, proteins, wait_until

pytestmark = pytest.mark.chaos

REFUSED_WITHIN_S = 1.0  # measured: 5 ms


def num_losses(service: Running) -> int:
    """Calls that were lost since the start, as the gateway workers logged it."""
    return service.service.log.read_text().count("was lost with a call")


def test_what_was_under_way_is_answered_and_what_comes_meanwhile_is_refused_at_once(shared: Running) -> None:
    requests = [proteins(LARGE, seed=n) for n in range(4)]
    expected = shared.expect(requests)
    (runner,) = shared.workers(RUNNER)
    first, second = shared.workers(GATEWAY)
    losses = num_losses(shared)
    with ExitStack() as stack:
        clients = [stack.enter_context(shared.connected_to(worker)) for worker in [first] * 2 + [second] * 2]
        newcomers = [stack.enter_context(shared.connected_to(worker)) for worker in (first, second)]
        with shared.under_way(requests, clients) as answers:
            runner.kill()
            psutil.wait_procs([runner])
            wait_until(
                lambda: num_losses(shared) - losses >= sum(not answer.done() for answer in answers),
                "both gateway workers have noticed",
            )
            assert num_losses(shared) - losses >= 2
            for newcomer in newcomers:
                started = time.monotonic()
                refused = shared.post(proteins(1, seed=99), newcomer)
                assert time.monotonic() - started < REFUSED_WITHIN_S
                assert (refused.status_code, refused.json()["error"]) == (503, "Runner unavailable")
                assert int(refused.headers["retry-after"]) > 0
            replies = [answer.result() for answer in answers]
    for reply, right in zip(replies, expected, strict=True):
        assert_same(arrays_of(reply), right)
    (successor,) = shared.workers(RUNNER)
    assert successor.pid != runner.pid


def test_a_runner_that_is_killed_again_and_again_costs_no_request(shared: Running) -> None:
    """Twice is less often than a call is made."""
    requests = [proteins(LARGE, seed=n) for n in range(10, 14)]
    expected = shared.expect(requests)
    with shared.under_way(requests) as answers:
        for _ in range(2):
            (runner,) = shared.workers(RUNNER)
            runner.kill()
            psutil.wait_procs([runner])
            wait_until(lambda: shared.batcher().get("queue_items", 0) > 0, "the next one has the requests")
        replies = [answer.result() for answer in answers]
    for reply, right in zip(replies, expected, strict=True):
        assert_same(arrays_of(reply), right)
