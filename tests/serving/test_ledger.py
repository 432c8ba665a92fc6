"""What one request has cost, added up."""

from __future__ import annotations

import numpy as np
import pytest

from models.wire import Reply
from serving.ledger import Ledger


def reply(num_tokens: list[int], queue_s: float, inference_s: float) -> Reply:
    return Reply(
        lengths=[1] * len(num_tokens),
        embeddings=np.zeros((len(num_tokens), 2), np.float32),
        errors={},
        precision="fp32",
        devices=["cpu"] * len(num_tokens),
        num_tokens=num_tokens,
        queue_s=queue_s,
        inference_s=inference_s,
    )


@pytest.mark.parametrize(
    ("hits", "misses", "expected"), [(0, 0, ""), (2, 0, "hit"), (0, 2, "miss"), (1, 1, "partial")]
)
def test_what_the_cache_had_of_a_request_is_one_word(hits: int, misses: int, expected: str) -> None:
    ledger = Ledger()
    ledger.begin("embedding", "m")
    ledger.note_lookup(hits, misses)
    assert ledger.cache == expected


def test_what_several_calls_cost_is_added_up_and_told_as_means_of_sequences() -> None:
    ledger = Ledger()
    ledger.begin("embedding", "m")
    ledger.note_lookup(hits=1, misses=3)
    ledger.note_reply(reply([10, 20], queue_s=0.003, inference_s=0.03))
    ledger.note_reply(reply([5], queue_s=0.0, inference_s=0.03))
    assert ledger.cost_headers(total_s=0.1234) == {
        "x-total-time": "123.40",
        "x-queue-time": "1.00",
        "x-inference-time": "20.00",
        "x-compute-tokens": "35",
        "x-cache": "partial",
    }


def test_what_the_cache_had_was_free() -> None:
    ledger = Ledger()
    ledger.begin("embedding", "m")
    ledger.note_lookup(hits=3, misses=0)
    headers = ledger.cost_headers(total_s=0.001)
    assert (headers["x-compute-tokens"], headers["x-inference-time"], headers["x-cache"]) == ("0", "0.00", "hit")


def test_who_asked_no_model_is_told_no_cost() -> None:
    assert Ledger().cost_headers(total_s=1.0) == {}


def test_values_of_one_header_make_a_list() -> None:
    ledger = Ledger()
    ledger.add_header("ratelimit", "a")
    ledger.add_header("ratelimit", "b")
    ledger.add_header("other", "c")
    assert ledger.headers == {"ratelimit": "a, b", "other": "c"}


def test_ledgers_share_nothing() -> None:
    one, other = Ledger(), Ledger()
    one.add_header("a", "b")
    assert other.headers == {}
    assert other.caller.name == "anonymous"
