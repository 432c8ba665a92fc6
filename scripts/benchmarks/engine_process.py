"""The engine alone, in a process of its own: what the service could do at best on this machine."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType

import numpy as np

from scripts.benchmarks.clock import timed
from scripts.benchmarks.contenders import Task
from scripts.benchmarks.machine import loading, prepare
from scripts.benchmarks.packed import Packed

WARM_UP = ["MKTAYIAKQR", "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQ"]


class EngineEnded(Exception):
    """Nothing can be compared any more."""


class EngineProcess:
    """All cores while it computes, none while it waits. budget: cost of one batch at most."""

    def __init__(self, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, task), daemon=True)
        self._process.start()
        other.close()
        self.budget: int = self._connection.recv()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.join()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def embed(self, sequences: Sequence[str]) -> tuple[list[np.ndarray], float]:
        """Means of the sequences, (D,) float32 each, and the seconds that they took there.

        Raises:
            EngineEnded: its process is gone.
        """
        try:
            self._connection.send(list(sequences))
            vectors, seconds = self._connection.recv()
        except (EOFError, BrokenPipeError):
            raise EngineEnded("the engine's process has ended") from None
        return vectors, seconds


def _serve(connection: Connection, task: Task) -> None:
    prepare()
    with loading():
        packed = Packed(task)
    packed(WARM_UP)
    connection.send(packed.budget)
    while True:
        try:
            sequences = connection.recv()
        except EOFError:
            return
        connection.send(timed(functools.partial(packed, sequences), task.device))
