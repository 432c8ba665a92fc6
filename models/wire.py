"""What a runner answers, as bytes: a JSON header, then every row end to end. No pickle, one copy.

    uint32 little-endian: size of the header | header | rows, (R, D) row-major

Neither torch nor a web framework in here: runner and gateway both use it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_HEADER_SIZE = struct.Struct("<I")


@dataclass(frozen=True)
class Reply:
    """Embeddings of the sequences of one call.

    lengths: rows of each sequence in `embeddings`; 1 if pooled, 0 if it failed.
    embeddings: (sum of lengths, D).
    errors: index of each sequence that failed, and why.
    precision: of the arithmetic that made them.
    """

    lengths: Sequence[int]
    embeddings: np.ndarray
    errors: dict[int, str]
    precision: str


def encode_reply(results: Sequence[np.ndarray | Exception], dim: int, dtype: str, precision: str) -> bytes:
    """One result a sequence, (D,) or (L, D) of `dtype`, or why there is none."""
    header: dict[str, Any] = {
        "lengths": [r.size // dim if isinstance(r, np.ndarray) else 0 for r in results],
        "dim": dim,
        "dtype": dtype,
        "precision": precision,
        "errors": {i: str(r) for i, r in enumerate(results) if isinstance(r, Exception)},
    }
    text = json.dumps(header).encode()
    rows = [
        np.ascontiguousarray(result).data.cast("B")
        for result in results
        if isinstance(result, np.ndarray) and result.size
    ]
    return b"".join([_HEADER_SIZE.pack(len(text)), text, *rows])


def decode_reply(data: bytes) -> Reply:
    """The reply in a body; its rows are views of the body, not copies."""
    (size,) = _HEADER_SIZE.unpack_from(data)
    start = _HEADER_SIZE.size + size
    header = json.loads(data[_HEADER_SIZE.size : start])
    rows = np.frombuffer(data, np.dtype(header["dtype"]), offset=start).reshape(-1, header["dim"])
    errors = {int(index): reason for index, reason in header["errors"].items()}
    return Reply(header["lengths"], rows, errors, header["precision"])
