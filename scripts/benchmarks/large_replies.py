"""Memory of the service's processes while one large request is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from scripts.benchmarks.clients import Load, connecting
from scripts.benchmarks.footprint import Growth, watching
from scripts.benchmarks.services import Served
from scripts.benchmarks.streams import fresh_of_length

WARM_UP_LENGTH = 50


@dataclass(frozen=True)
class Sizes:
    """Of the request: sequences, and residues of each."""

    num: int
    length: int


@dataclass(frozen=True)
class Reply:
    """seconds: until its last byte. growth: of memory, by role."""

    seconds: float
    growth: Mapping[str, Growth]


def measure(served: Served, sizes: Sizes, is_npz: bool, seed: int) -> Reply:
    """One request per residue on a service that has answered small ones of the kind."""

    async def send(sequences: list[str]) -> Load:
        async with connecting(served.url, keeps_bodies=False) as clients:
            call = served.call(sequences, is_pooled=False, is_npz=is_npz)
            return (await clients.closed_loop([call], 1)).require(200)

    for start in range(8):  # until every worker has had some
        asyncio.run(send(list(islice(fresh_of_length(WARM_UP_LENGTH, seed + 1 + start), 4))))
    sequences = list(islice(fresh_of_length(sizes.length, seed), sizes.num))
    with watching(served.pid) as growth:
        done = asyncio.run(send(sequences))
    return Reply(done.answers[0].seconds, growth)
