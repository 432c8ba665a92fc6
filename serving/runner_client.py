"""How a gateway worker talks to a runner: HTTP over its unix socket, on connections that are kept.

BentoML's own proxy is not used for this: it closes its session after every hundred calls, with the calls that
are under way in it (docs/decisions/0008-own-runner-client.md).
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
from opentelemetry import propagate

from models.wire import Reply, decode_reply
from serving.errors import DeadlineExceeded, InferenceFailed, RunnerUnavailable

# Below the 5 seconds after which the runner's server drops an idle connection
KEEP_ALIVE_S = 3.0
CONNECT_TIMEOUT_S = 5.0
MAX_CONNECTIONS = 100  # further calls wait here for one that is free


class RunnerClient:
    """Calls one runner.

    Args:
        name: of the runner's BentoML service.
        url: file:///path/of/a.sock or http://host:port, as BentoML gave it.
        timeout_s: seconds for one call.
    """

    def __init__(self, name: str, url: str, timeout_s: float) -> None:
        self._name = name
        self._url = urlsplit(url)
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def embed(self, sequences: list[str], pooled: bool, dtype: str) -> Reply:
        """Embeddings of cleaned sequences.

        Raises:
            RunnerUnavailable: it is not there, or went away.
            DeadlineExceeded: it took too long.
            InferenceFailed: it failed as a whole; a sequence that fails alone is in the reply.
        """
        return decode_reply(await self._call("embed", sequences=sequences, pooled=pooled, dtype=dtype))

    async def status(self) -> dict[str, Any]:
        """What the runner says of itself. Raises as `embed`."""
        found: dict[str, Any] = json.loads(await self._call("status"))
        return found

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()

    async def _call(self, method: str, **arguments: Any) -> bytes:
        for is_last in (False, True):
            try:
                async with self._open(method).post(
                    f"/{method}", json=arguments, headers=self._headers()
                ) as response:
                    if response.status == 200:
                        return await response.read()
                    raise self._explain(response.status)
            except aiohttp.ServerDisconnectedError as error:
                # An idle connection that was dropped just as it was taken up again, or a runner that died
                if is_last:
                    raise RunnerUnavailable(f"{self._name} went away") from error
            except aiohttp.ConnectionTimeoutError as error:
                raise RunnerUnavailable(f"{self._name} does not answer") from error
            except TimeoutError as error:
                raise DeadlineExceeded(f"{self._name} took over {self._timeout.total:g} seconds") from error
            except aiohttp.ClientError as error:
                raise RunnerUnavailable(f"{self._name} does not answer") from error
        raise AssertionError("unreachable")

    def _explain(self, status: int) -> Exception:
        if status == 504:
            return DeadlineExceeded(f"{self._name} took too long")
        if status == 503:
            return RunnerUnavailable(f"{self._name} is not ready")
        return InferenceFailed(f"{self._name} failed with status {status}; the server's log has the details")

    def _headers(self) -> dict[str, str]:
        headers = {"Runner-Name": self._name}  # by which BentoCloud routes
        propagate.inject(headers)
        return headers

    def _open(self, method: str) -> aiohttp.ClientSession:
        """One session a method: whether a runner is well is asked even while all connections embed."""
        if method not in self._sessions:
            if self._url.scheme == "file":
                connector: aiohttp.BaseConnector = aiohttp.UnixConnector(
                    unquote(self._url.path), limit=MAX_CONNECTIONS, keepalive_timeout=KEEP_ALIVE_S
                )
                base = "http://runner"
            else:
                connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS, keepalive_timeout=KEEP_ALIVE_S)
                base = self._url.geturl()
            self._sessions[method] = aiohttp.ClientSession(base, connector=connector, timeout=self._timeout)
        return self._sessions[method]
