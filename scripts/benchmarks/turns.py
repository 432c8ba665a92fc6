"""Taking turns over HTTP: what a contender is given, and what its turn brings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from scripts.benchmarks.clients import Call, Load, connecting
from scripts.benchmarks.engine_process import EngineProcess
from scripts.benchmarks.services import Served, read_embeddings
from scripts.peers.launch import Peer


@dataclass(frozen=True)
class Turn:
    """One contender in one round. read: a mean for each sequence; None where residues were asked for."""

    seconds: float
    latencies_s: list[float] = field(default_factory=list)
    own_cores: float = 0.0
    read: Callable[[], list[np.ndarray]] | None = None


Requests = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Contender:
    """prepare: for a round's work, whose turn is then what it gives. Replies are read after the turn.

    pid: of the first of its processes; None where somebody else started it.
    """

    prepare: Callable[[Requests], Callable[[], Turn]]
    pid: int | None


def engine_contender(engine: EngineProcess) -> Contender:
    def prepare(work: Requests) -> Callable[[], Turn]:
        def take_turn() -> Turn:
            vectors, seconds = engine.embed([sequence for request in work for sequence in request])
            return Turn(seconds, read=lambda: vectors)

        return take_turn

    return Contender(prepare, engine.pid)


def service_contender(served: Served, num_clients: int, is_pooled: bool) -> Contender:
    def prepare(work: Requests) -> Callable[[], Turn]:
        served.clear_cache()
        calls = [served.call(request, is_pooled=is_pooled, is_npz=True) for request in work]
        return partial(_send, served.url, calls, num_clients, read_embeddings if is_pooled else None)

    return Contender(prepare, served.pid)


def peer_contender(peer: Peer, num_clients: int) -> Contender:
    def prepare(work: Requests) -> Callable[[], Turn]:
        return partial(_send, peer.url, [peer.call(request) for request in work], num_clients, peer.decode)

    return Contender(prepare, peer.pid)


def _send(url: str, calls: Sequence[Call], num_clients: int, decode: Callable[[bytes], Any] | None) -> Turn:
    async def send() -> Load:
        async with connecting(url, keeps_bodies=decode is not None) as clients:
            return await clients.closed_loop(calls, num_clients)

    done = asyncio.run(send()).require(200)
    read = None
    if decode is not None:
        bodies = {id(answer.call): answer.body for answer in done.answers}

        def read() -> list[np.ndarray]:
            return [vector for call in calls for vector in decode(bodies[id(call)])]

    return Turn(done.seconds, [answer.seconds for answer in done.answers], done.own_cores, read)
