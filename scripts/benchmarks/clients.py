"""Many clients of a service in one process, which cost little: bodies are made before, replies read after."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import aiohttp
import numpy as np

NO_REPLY = 0  # instead of a status: the connection broke, or the time was over


@dataclass(frozen=True)
class Call:
    """A POST request, ready to be sent; how many residues it asks for."""

    path: str
    body: bytes
    headers: Mapping[str, str]
    num_residues: int


@dataclass(frozen=True)
class Answer:
    """What came back. seconds: from sending until the last byte. ended_s: after the load's start."""

    call: Call
    status: int
    seconds: float
    ended_s: float
    body: bytes
    retry_after: str | None


@dataclass
class Load:
    """What a load of calls brought: answers as they came, wall time, processor time of this process."""

    answers: list[Answer] = field(default_factory=list)
    seconds: float = 0.0
    own_cpu_s: float = 0.0

    @property
    def own_cores(self) -> float:
        """Cores that the clients themselves kept busy."""
        return self.own_cpu_s / self.seconds

    @property
    def num_residues(self) -> int:
        """Of the calls that were answered with 200."""
        return sum(answer.call.num_residues for answer in self.answers if answer.status == 200)

    def require(self, *statuses: int) -> Load:
        """Itself, if every answer has one of these statuses.

        Raises:
            RuntimeError: naming the first that has not.
        """
        for answer in self.answers:
            if answer.status not in statuses:
                raise RuntimeError(f"{answer.call.path} was answered {answer.status}: {answer.body[:300]!r}")
        return self


class Clients:
    """Connections to one service, kept open and shared by whoever sends; as many as are in use at a time."""

    def __init__(self, session: aiohttp.ClientSession, keeps_bodies: bool) -> None:
        self._session = session
        self._keeps_bodies = keeps_bodies

    async def send(self, call: Call, since: float | None = None) -> Answer:
        """One call. since: the load's start, as time.perf_counter() has it."""
        started = time.perf_counter()
        status, body, retry_after = NO_REPLY, b"", None
        try:
            async with self._session.post(call.path, data=call.body, headers=call.headers) as reply:
                if self._keeps_bodies or reply.status != 200:
                    body = await reply.read()
                else:
                    async for _ in reply.content.iter_any():
                        pass
                status, retry_after = reply.status, reply.headers.get("retry-after")
        except (aiohttp.ClientError, TimeoutError) as error:
            body = f"{type(error).__name__}: {error}".encode()
        ended = time.perf_counter()
        return Answer(call, status, ended - started, ended - (since or started), body, retry_after)

    async def closed_loop(self, calls: Iterable[Call], num_clients: int) -> Load:
        """Every call once; each client sends its next one when the last is answered."""
        waiting = iter(calls)

        async def work() -> None:
            for call in waiting:
                load.answers.append(await self.send(call, started))

        with _measured() as load:
            started = time.perf_counter()
            await asyncio.gather(*(work() for _ in range(num_clients)))
        return load

    async def closed_loop_for(self, calls: Iterator[Call], num_clients: int, seconds: float) -> Load:
        """As `closed_loop`, until the time is over; what is under way then is waited for."""

        def until() -> Iterator[Call]:
            while time.perf_counter() < started + seconds:
                yield next(calls)

        started = time.perf_counter()
        return await self.closed_loop(until(), num_clients)

    async def open_loop(self, calls: Iterator[Call], rate: float, seconds: float, seed: int) -> Load:
        """Calls at random times, `rate` a second on average, for so long, whether answered or not (Poisson).

        Comes back when the last is answered.
        """
        rng = np.random.default_rng(seed)

        async def work(call: Call) -> None:
            load.answers.append(await self.send(call, started))

        with _measured() as load:
            started = time.perf_counter()
            due = started + rng.exponential(1 / rate)
            async with asyncio.TaskGroup() as group:
                while due < started + seconds:
                    await asyncio.sleep(due - time.perf_counter())
                    group.create_task(work(next(calls)))
                    due += rng.exponential(1 / rate)
        return load


@contextlib.asynccontextmanager
async def connecting(url: str, keeps_bodies: bool = True, timeout_s: float = 600) -> AsyncIterator[Clients]:
    """Clients of the service at this address. keeps_bodies: of replies; those of errors always are."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:
        yield Clients(session, keeps_bodies)


@contextlib.contextmanager
def _measured() -> Iterator[Load]:
    load = Load()
    started, cpu_started = time.perf_counter(), time.process_time()
    yield load
    load.seconds, load.own_cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
