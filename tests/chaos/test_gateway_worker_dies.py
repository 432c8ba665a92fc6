"""One of two gateway workers is killed under load."""

from __future__ import annotations

from contextlib import ExitStack

import httpx
import psutil
import pytest

from tests.chaos.running import GATEWAY, LARGE, Running, arrays_of, assert_same, proteins, wait_until

pytestmark = pytest.mark.chaos


def test_the_other_workers_requests_are_not_touched_and_the_killed_one_comes_back(shared: Running) -> None:
    requests = [proteins(LARGE, seed=n) for n in range(20, 24)]
    expected = shared.expect(requests)
    killed, other = shared.workers(GATEWAY)
    abandoned = shared.batcher()["num_abandoned"]
    with ExitStack() as stack:
        clients = [stack.enter_context(shared.connected_to(worker)) for worker in [killed] * 2 + [other] * 2]
        with shared.under_way(requests, clients) as answers:
            killed.kill()
            psutil.wait_procs([killed])
            for answer in answers[:2]:
                assert isinstance(answer.exception(), httpx.TransportError)
            replies = [answer.result() for answer in answers[2:]]
    for reply, right in zip(replies, expected[2:], strict=True):
        assert_same(arrays_of(reply), right)
    assert shared.batcher()["num_abandoned"] > abandoned  # what the killed one had asked for

    wait_until(lambda: len(shared.workers(GATEWAY)) == 2, "there are two again")
    for worker in shared.workers(GATEWAY):
        assert worker.pid != killed.pid
        with shared.connected_to(worker) as http:
            assert_same(arrays_of(shared.post(requests[0], http)), expected[0])
