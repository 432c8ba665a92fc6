"""Reading replies that are npz files, from several threads too."""

from __future__ import annotations

import io
import threading

import numpy as np

_reading = threading.Lock()


def read_npz(content: bytes) -> dict[str, np.ndarray]:
    """Every array of it by name.

    One thread at a time: numpy reads an array's header with `ast.literal_eval`, which fails in early releases of
    Python 3.11 where two threads are in it at once (SystemError: AST constructor recursion depth mismatch; issue
    106905 of CPython).
    """
    with _reading, np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)
