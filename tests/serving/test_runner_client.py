"""The way to a runner, over a real server on a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web

from models.wire import encode_reply
from serving.errors import DeadlineExceeded, InferenceFailed, RunnerUnavailable
from serving.runner_client import MAX_CONNECTIONS, RunnerClient

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Answers /embed with one row of the number of sequences, in whatever way `handler` is set to."""

    def __init__(self) -> None:
        self.handler: Handler = self.answer
        self.num_calls = 0
        self.connections: set[object] = set()

    async def dispatch(self, request: web.Request) -> web.StreamResponse:
        self.num_calls += 1
        self.connections.add(request.transport)
        return await self.handler(request)

    async def answer(self, request: web.Request) -> web.Response:
        if request.path == "/status":
            return web.Response(body=json.dumps({"precision": "fp32"}))
        sequences = (await request.json())["sequences"]
        rows = [np.full(2, len(sequences), np.float32)] * len(sequences)
        return web.Response(body=encode_reply(rows, 2, "float32", "fp32"))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_post("/{method}", server.dispatch)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "runner.sock")).start()
    yield server
    await runner.cleanup()


@pytest.fixture
async def client(server: Server, tmp_path: Path) -> AsyncIterator[RunnerClient]:
    client = RunnerClient("runner_x", f"file://{tmp_path}/runner.sock", timeout_s=5)
    yield client
    await client.close()


async def test_calls_go_over_a_connection_that_is_kept(client: RunnerClient, server: Server) -> None:
    for _ in range(5):
        assert (await client.embed(["MK", "ML"], True, "float32")).embeddings[0, 0] == 2
    assert len(server.connections) == 1
    assert await client.status() == {"precision": "fp32"}


async def test_hundreds_of_calls_at_once_are_all_answered(client: RunnerClient, server: Server) -> None:
    """BentoML's own proxy loses those that are under way when its session is renewed, after each hundred."""
    replies = await asyncio.gather(*(client.embed(["M"] * (i % 7 + 1), True, "float32") for i in range(400)))
    assert [len(reply.lengths) for reply in replies] == [i % 7 + 1 for i in range(400)]


async def test_a_connection_that_was_dropped_is_taken_up_anew(client: RunnerClient, server: Server) -> None:
    async def drop(request: web.Request) -> web.Response:
        assert request.transport is not None
        server.handler = server.answer
        request.transport.abort()
        return web.Response()

    server.handler = drop
    assert (await client.embed(["M"], True, "float32")).lengths == [1]
    assert server.num_calls == 2


async def test_a_runner_that_goes_away_is_unavailable(client: RunnerClient, server: Server) -> None:
    async def drop(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    server.handler = drop
    with pytest.raises(RunnerUnavailable, match="runner_x went away"):
        await client.embed(["M"], True, "float32")
    assert server.num_calls == 2


async def test_a_runner_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    client = RunnerClient("runner_x", f"file://{tmp_path}/nobody.sock", timeout_s=5)
    with pytest.raises(RunnerUnavailable, match="runner_x does not answer"):
        await client.status()
    await client.close()


async def test_a_call_has_a_deadline(server: Server, tmp_path: Path) -> None:
    forever = asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        await forever.wait()
        return web.Response()

    server.handler = wait
    client = RunnerClient("runner_x", f"file://{tmp_path}/runner.sock", timeout_s=0.2)
    with pytest.raises(DeadlineExceeded, match=r"over 0\.2 seconds"):
        await client.embed(["M"], True, "float32")
    forever.set()
    await client.close()


@pytest.mark.parametrize(
    ("status", "kind"), [(500, InferenceFailed), (503, RunnerUnavailable), (504, DeadlineExceeded)]
)
async def test_a_status_of_the_runner_is_an_error_of_ours(
    client: RunnerClient, server: Server, status: int, kind: type[Exception]
) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=status)

    server.handler = refuse
    with pytest.raises(kind):
        await client.embed(["M"], True, "float32")


async def test_status_is_answered_while_every_connection_embeds(client: RunnerClient, server: Server) -> None:
    may_end = asyncio.Event()

    async def hold(request: web.Request) -> web.Response:
        if request.path == "/embed":
            await may_end.wait()
        return await server.answer(request)

    server.handler = hold
    busy = [asyncio.create_task(client.embed(["M"], True, "float32")) for _ in range(MAX_CONNECTIONS + 20)]
    while server.num_calls < MAX_CONNECTIONS:
        await asyncio.sleep(0.01)
    assert await asyncio.wait_for(client.status(), 2) == {"precision": "fp32"}
    may_end.set()
    await asyncio.gather(*busy)
