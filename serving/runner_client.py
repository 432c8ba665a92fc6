"""How a gateway worker talks to a runner: HTTP over its unix socket, on connections that are kept.

BentoML's own proxy is not used for this: it closes its session after every hundred calls, with the calls that
are under way in it (docs/decisions/0008-own-runner-client.md).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
from opentelemetry import propagate

from models.failures import NoDevice, NotLoaded, QueueFull, TooLate
from models.wire import Reply, decode_reply
from serving.errors import (
    DeadlineExceeded,
    InferenceFailed,
    ModelNotLoaded,
    Overloaded,
    RunnerUnavailable,
    ServiceError,
)
from serving.held_socket import HeldSocket
from serving.runners import STATUS_TIMEOUT_S, Terms
from serving.telemetry import span

logger = logging.getLogger(__name__)

# Below the 5 seconds after which the runner's server drops an idle connection
KEEP_ALIVE_S = 3.0
CONNECT_TIMEOUT_S = 5.0
MAX_ATTEMPTS = 3  # a call that the runner died of so often is held to be the cause
RESTART_S = 180.0  # that a call waits for a runner which is being started anew
POLL_EVERY_S = 0.1
ATTEND_S = 300.0  # of one call of `attend`, behind which it is made anew
READ_BYTES = 2_000_000  # that are taken from the socket before the reader must have fetched them
# Of the time in which a full queue is worked off: for so long new requests are refused without asking the runner,
# which has better to do than to refuse
FULL_SHARE = 0.05
BLINK_S = (
    0.5  # within which a runner is back that has only closed an idle connection; a new request waits no longer
)


class _Lost(Exception):
    """The connection ended before the answer."""


class _Absent(_Lost):
    """Nobody took the call at all."""


class RunnerClient:
    """Calls one runner.

    A call that is lost because the runner died is made again when the runner is back: embeddings have no side
    effects. Until then calls of new requests fail after BLINK_S.

    Args:
        name: of the runner's BentoML service.
        url: file:///path/of/a.sock or http://host:port, as BentoML gave it.
        timeout_s: seconds for one call.
    """

    def __init__(self, name: str, url: str, timeout_s: float) -> None:
        self._name = name
        self._url = urlsplit(url)
        self._socket = HeldSocket(unquote(self._url.path)) if self._url.scheme == "file" else None
        self._timeout_s = timeout_s
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._return: asyncio.Task[None] | None = None  # while the runner is away: done when it is back
        self._full_until = self._retry_after_s = 0.0

    async def embed(self, sequences: list[Any], form: Mapping[str, Any], terms: Terms) -> Reply:
        """Embeddings of sequences; `form` says what is wanted of each, as the runner's engine understands it.

        Raises:
            Overloaded: too much waits there, or too much for an answer in time.
            RunnerUnavailable: it is not there, and does not come back in time.
            DeadlineExceeded: it took too long.
            InferenceFailed: it failed as a whole, or died of it; a sequence that fails alone is in the reply.
        """
        if not terms.is_admitted:
            if self._now() < self._full_until:
                raise self._overloaded()
            await self._wait_for_return(terms, BLINK_S)
        arguments = {"sequences": sequences, "form": dict(form), "priority": terms.priority}
        for _ in range(MAX_ATTEMPTS):
            await self._wait_for_return(terms, RESTART_S)
            left_s = min(self._timeout_s, self._left_s(terms))
            try:
                now = {"is_admitted": terms.is_admitted, "timeout_s": left_s}
                with span(f"{self._name} call", {"pes.sequences": len(sequences)}):
                    reply = decode_reply(await self._call("embed", left_s, arguments | now))
                terms.ledger.note_reply(reply)
                return reply
            except QueueFull as error:
                self._full_until = self._now() + error.retry_after_s * FULL_SHARE
                self._retry_after_s = error.retry_after_s
                raise self._overloaded() from None
            except TooLate as error:
                late = f"too much waits for {self._name} to answer within {left_s:.3g} s"
                raise Overloaded(late, error.retry_after_s) from None
            except NotLoaded as error:
                raise ModelNotLoaded(str(error)) from None
            except TimeoutError:
                raise DeadlineExceeded(f"{self._name} took over {left_s:.3g} seconds") from None
            except (_Lost, NoDevice) as error:
                logger.warning("%s was lost with a call of %d sequences: %s", self._name, len(sequences), error)
                self.suspect()
                if isinstance(error, _Absent) and not terms.is_admitted:
                    raise RunnerUnavailable(f"{self._name} does not answer") from error
                terms = replace(terms, is_admitted=True)  # it was taken once
        raise InferenceFailed(f"{self._name} went away {MAX_ATTEMPTS} times with this call")

    async def status(self) -> dict[str, Any]:
        """What the runner says of itself.

        Raises:
            RunnerUnavailable, InferenceFailed: as `embed`.
            TimeoutError: it does not answer in time.
        """
        try:
            found: dict[str, Any] = json.loads(await self._call("status", STATUS_TIMEOUT_S, {}))
        except _Lost as error:
            raise RunnerUnavailable(f"{self._name} does not answer") from error
        return found

    async def attend(self) -> None:
        """Tells the runner that it is needed, until this is cancelled: told to end, it waits for who attends."""
        while True:
            try:
                await self._call("attend", ATTEND_S, {})
            except (ServiceError, _Lost, TimeoutError):
                pass
            await asyncio.sleep(POLL_EVERY_S)

    def suspect(self) -> None:
        """It does not say how it is: calls of new requests fail at once until it does."""
        self._return = self._return or asyncio.create_task(self._poll())

    async def close(self) -> None:
        if self._return is not None:
            self._return.cancel()
        for session in self._sessions.values():
            await session.close()
        if self._socket is not None:
            self._socket.close()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _overloaded(self) -> Overloaded:
        return Overloaded(f"too much waits for {self._name}", self._retry_after_s)

    def _left_s(self, terms: Terms) -> float:
        left_s = terms.deadline - self._now()
        if left_s <= 0:
            raise DeadlineExceeded(f"no time was left for {self._name}")
        return left_s

    async def _wait_for_return(self, terms: Terms, patience_s: float) -> None:
        if self._return is None:
            return
        try:
            async with asyncio.timeout(min(patience_s, self._left_s(terms))):
                await asyncio.shield(self._return)
        except TimeoutError:
            self._left_s(terms)
            raise RunnerUnavailable(f"{self._name} is not back after {patience_s:g} s") from None

    async def _poll(self) -> None:
        """Until the runner answers again."""
        try:
            while True:
                try:
                    await self.status()
                    return
                except (ServiceError, TimeoutError):
                    await asyncio.sleep(POLL_EVERY_S)
        finally:
            self._return = None

    async def _call(self, method: str, timeout_s: float, arguments: Mapping[str, Any]) -> bytes:
        """The body of the answer.

        Raises:
            _Lost, _Absent, TimeoutError, DeadlineExceeded, InferenceFailed
        """
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with self._open(method).post(
                f"/{method}", json=arguments, headers=self._headers(), timeout=timeout
            ) as response:
                if response.status == 200:
                    return await response.read()
                raise self._explain(response.status)
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
            raise _Absent(str(error)) from error
        except aiohttp.ClientError as error:
            raise _Lost(f"{type(error).__name__}: {error}") from error

    def _explain(self, status: int) -> Exception:
        if status == 504:
            return DeadlineExceeded(f"{self._name} took too long")
        if status == 503:
            return _Absent(f"{self._name} is not ready")
        return InferenceFailed(f"{self._name} failed with status {status}; the server's log has the details")

    def _headers(self) -> dict[str, str]:
        headers = {"Runner-Name": self._name}  # by which BentoCloud routes
        propagate.inject(headers)
        return headers

    def _open(self, method: str) -> aiohttp.ClientSession:
        """One session a method: whether a runner is well is asked even while all connections embed."""
        if method not in self._sessions:
            if self._socket is not None:
                connector: aiohttp.BaseConnector = aiohttp.UnixConnector(
                    self._socket.path, limit=0, keepalive_timeout=KEEP_ALIVE_S
                )
                base = "http://runner"
            else:
                connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
                base = self._url.geturl()
            self._sessions[method] = aiohttp.ClientSession(base, connector=connector, read_bufsize=READ_BYTES)
        return self._sessions[method]
