"""A client closes its connection in the middle of a large request."""

from __future__ import annotations

import pytest

from tests.chaos.running import Running, assert_same, proteins, wait_until

pytestmark = pytest.mark.chaos


def test_what_it_queued_is_dropped_and_others_are_answered(shared: Running) -> None:
    mine = proteins(2, seed=30, length=100)
    (expected,) = shared.expect([mine])
    before = shared.batcher()
    with shared.left_alone(proteins(100, seed=31, length=1000)):
        pass
    wait_until(lambda: shared.batcher()["queue_items"] == 0, "nothing of it waits any more", patience_s=5)
    assert_same(shared.embed(mine), expected)
    after = shared.batcher()
    assert after["num_abandoned"] > before["num_abandoned"]
    assert after["num_items"] - before["num_items"] < 50
    wait_until(lambda: not list(shared.outputs.glob("*.part")), "its file is deleted")
