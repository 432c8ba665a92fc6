"""What a runner answers, as bytes: a JSON header, then every row end to end. No pickle, one copy.

    uint32 little-endian: size of the header | header | rows, (R, D) row-major

A call that was refused as a whole is a header alone, which says why.

Neither torch nor a web framework in here: runner and gateway both use it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.failures import NoDevice, NotLoaded, QueueFull, TooLate

Refusal = QueueFull | TooLate | NoDevice | NotLoaded | TimeoutError

_HEADER_SIZE = struct.Struct("<I")


@dataclass(frozen=True)
class Reply:
    """Embeddings of the sequences of one call.

    lengths: rows of each sequence in `embeddings`; 1 if pooled, 0 if it failed.
    embeddings: (sum of lengths, D).
    errors: index of each sequence that failed, and why.
    precision: of the arithmetic that made them.
    devices: on which each sequence ran ("cpu", "cuda:1", ...); none where it did not come so far.
    num_tokens: of each sequence as the model reads it, special ones included; 0 where it could not be read.
    queue_s, inference_s: for which the sequences waited for a device, and their batches ran; sums over them.
    """

    lengths: Sequence[int]
    embeddings: np.ndarray
    errors: dict[int, str]
    precision: str
    devices: Sequence[str | None]
    num_tokens: Sequence[int] = ()
    queue_s: float = 0.0
    inference_s: float = 0.0


def encode_reply(
    results: Sequence[np.ndarray | Exception],
    dim: int,
    dtype: str,
    precision: str,
    devices: Sequence[str | None],
    num_tokens: Sequence[int] = (),
    queue_s: float = 0.0,
    inference_s: float = 0.0,
) -> bytes:
    """One result a sequence, (D,) or (L, D) of `dtype`, or why there is none; the rest as in `Reply`."""
    header: dict[str, Any] = {
        "lengths": [r.size // dim if isinstance(r, np.ndarray) else 0 for r in results],
        "dim": dim,
        "dtype": dtype,
        "precision": precision,
        "errors": {i: str(r) for i, r in enumerate(results) if isinstance(r, Exception)},
        "devices": devices,
        "num_tokens": num_tokens,
        "queue_s": queue_s,
        "inference_s": inference_s,
    }
    rows = [
        np.ascontiguousarray(result).data.cast("B")
        for result in results
        if isinstance(result, np.ndarray) and result.size
    ]
    return b"".join([*_encode_header(header), *rows])


def encode_refusal(error: Refusal) -> bytes:
    """Why a call was not answered at all."""
    retry_after_s = error.retry_after_s if isinstance(error, QueueFull | TooLate) else None
    return b"".join(
        _encode_header({"refused": type(error).__name__, "why": str(error), "retry_after_s": retry_after_s})
    )


def decode_reply(data: bytes) -> Reply:
    """The reply in a body; its rows are views of the body, not copies.

    Raises:
        QueueFull, TooLate, NoDevice, NotLoaded, TimeoutError: the body says so.
    """
    (size,) = _HEADER_SIZE.unpack_from(data)
    start = _HEADER_SIZE.size + size
    header = json.loads(data[_HEADER_SIZE.size : start])
    match header.get("refused"):
        case None:
            pass
        case "QueueFull":
            raise QueueFull(header["retry_after_s"])
        case "TooLate":
            raise TooLate(header["retry_after_s"])
        case "NoDevice":
            raise NoDevice(header["why"])
        case "NotLoaded":
            raise NotLoaded(header["why"])
        case _:
            raise TimeoutError(header["why"])
    rows = np.frombuffer(data, np.dtype(header["dtype"]), offset=start).reshape(-1, header["dim"])
    errors = {int(index): reason for index, reason in header["errors"].items()}
    times = (header.get("queue_s", 0.0), header.get("inference_s", 0.0))  # which files of older jobs do not have
    return Reply(
        header["lengths"], rows, errors, header["precision"], header["devices"], header["num_tokens"], *times
    )


def _encode_header(header: Mapping[str, Any]) -> tuple[bytes, bytes]:
    text = json.dumps(header).encode()
    return _HEADER_SIZE.pack(len(text)), text
