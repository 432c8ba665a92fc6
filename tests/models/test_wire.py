"""What travels between a runner and a gateway."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from models.failures import NoDevice, QueueFull, TooLate
from models.wire import Refusal, Reply, decode_reply, encode_refusal, encode_reply


def full(rows: int, value: float, dtype: str = "float32") -> np.ndarray:
    return np.full((rows, 4), value, dtype)


def sent(results: list[np.ndarray | Exception], dtype: str = "float32") -> Reply:
    """The results on the other side."""
    return decode_reply(encode_reply(results, 4, dtype, "fp32", ["cpu"] * len(results)))


def test_residues_of_all_sequences_arrive_in_order() -> None:
    reply = sent([full(2, 1), full(1, 2), full(3, 3)])
    assert reply.lengths == [2, 1, 3]
    assert reply.embeddings.tolist() == [[v] * 4 for v in (1, 1, 2, 3, 3, 3)]
    assert reply.errors == {}


def test_a_pooled_embedding_is_one_row() -> None:
    reply = sent([full(1, 1)[0], full(1, 2)[0]])
    assert reply.lengths == [1, 1]
    assert reply.embeddings.tolist() == [[1] * 4, [2] * 4]


def test_a_failed_sequence_has_no_rows_and_a_reason() -> None:
    reply = sent([full(2, 1), RuntimeError("too odd: 日本"), full(1, 3)])
    assert reply.lengths == [2, 0, 1]
    assert reply.embeddings.tolist() == [[1] * 4, [1] * 4, [3] * 4]
    assert reply.errors == {1: "too odd: 日本"}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_failures_alone_are_an_empty_array_of_the_asked_kind(dtype: str) -> None:
    reply = sent([ValueError("a"), RuntimeError("b")], dtype)
    assert reply.lengths == [0, 0]
    assert reply.embeddings.shape == (0, 4)
    assert reply.embeddings.dtype == dtype
    assert reply.errors == {0: "a", 1: "b"}


def test_nothing_asked_is_nothing_sent() -> None:
    reply = sent([])
    assert (reply.lengths, reply.embeddings.shape, reply.errors) == ([], (0, 4), {})


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_bit_arrives(dtype: str) -> None:
    rows = np.random.default_rng(0).standard_normal((7, 4)).astype(dtype)
    reply = sent([rows[:2], rows[2], rows[3:]], dtype)
    assert reply.embeddings.dtype == dtype
    assert np.array_equal(reply.embeddings, rows)


def test_rows_that_are_not_contiguous_arrive_as_they_are() -> None:
    rows = np.arange(24, dtype="float32").reshape(4, 6).T
    assert not rows.flags.c_contiguous
    assert np.array_equal(sent([rows]).embeddings, rows)


def test_the_header_is_json_that_anyone_can_read() -> None:
    data = encode_reply([full(2, 1), ValueError("bad")], 4, "float32", "fp32", ["cuda:1", None], [7, 0])
    (size,) = struct.unpack("<I", data[:4])
    assert json.loads(data[4 : 4 + size]) == {
        "lengths": [2, 0],
        "dim": 4,
        "dtype": "float32",
        "precision": "fp32",
        "errors": {"1": "bad"},
        "devices": ["cuda:1", None],
        "num_tokens": [7, 0],
        "queue_s": 0.0,
        "inference_s": 0.0,
    }
    assert len(data) == 4 + size + 2 * 4 * 4


def test_precision_devices_and_tokens_arrive() -> None:
    reply = decode_reply(encode_reply([full(1, 1), OSError("no")], 4, "float32", "bf16", ["cuda:3", None], [3, 0]))
    assert reply.num_tokens == [3, 0]
    assert reply.precision == "bf16"
    assert reply.devices == ["cuda:3", None]


def test_a_full_queue_arrives_with_the_time_to_wait() -> None:
    with pytest.raises(QueueFull, match="too much is waiting; try again in 12 s") as caught:
        decode_reply(encode_refusal(QueueFull(12.25)))
    assert caught.value.retry_after_s == 12.25


@pytest.mark.parametrize(
    "error", [NoDevice("the last device was lost: 日本"), TooLate(3.0), TimeoutError("after 3 s"), TimeoutError()]
)
def test_a_refusal_arrives_as_it_was_raised(error: Refusal) -> None:
    with pytest.raises(type(error)) as caught:
        decode_reply(encode_refusal(error))
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)


def test_a_refusal_is_a_header_that_anyone_can_read() -> None:
    data = encode_refusal(QueueFull(2.0))
    (size,) = struct.unpack("<I", data[:4])
    assert len(data) == 4 + size
    assert json.loads(data[4:]) == {
        "refused": "QueueFull",
        "why": "too much is waiting; try again in 2 s",
        "retry_after_s": 2.0,
    }
