"""The way to a runner, over a real server on a real socket."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from models.failures import NoDevice, QueueFull, TooLate
from models.wire import Refusal, Reply, encode_refusal, encode_reply
from serving import runner_client
from serving.errors import DeadlineExceeded, InferenceFailed, Overloaded, RunnerUnavailable
from serving.runner_client import MAX_ATTEMPTS, RunnerClient
from serving.runners import Terms
from tests.serving.conftest import within

POOLED = {"pooled": True, "dtype": "float32"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Answers /embed with one row of the number of sequences, in whatever way `embed` is set to.

    While `is_away`, every connection is closed without an answer; /status waits for `status_gate` where there is
    one. `stop` and `start` are the real thing; as under BentoML, whose first process listens for a runner, who
    comes between them waits.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self.embed: Handler = self.answer
        self.is_away = False
        self.status_gate: asyncio.Event | None = None
        self.requests: list[dict[str, Any]] = []  # what each call of /embed asked for
        self.num_status_calls = 0
        self.connections: set[object] = set()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/{method}", self._dispatch)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.SockSite(self._runner, self._listening.dup()).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def end(self) -> None:
        """Nobody listens any more."""
        await self.stop()
        self._listening.close()

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        self.connections.add(request.transport)
        if request.path == "/status":
            self.num_status_calls += 1
            if self.status_gate is not None:
                await self.status_gate.wait()
            return await self.drop(request) if self.is_away else web.Response(body=b'{"precision": "fp32"}')
        self.requests.append(await request.json())
        return await self.drop(request) if self.is_away else await self.embed(request)

    async def answer(self, request: web.Request) -> web.Response:
        sequences = (await request.json())["sequences"]
        rows = [np.full(2, len(sequences), np.float32)] * len(sequences)
        return web.Response(body=encode_reply(rows, 2, "float32", "fp32", ["cpu"] * len(sequences)))

    async def drop(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def die(self, request: web.Request) -> web.Response:
        """The connection is lost in the middle of a call, and from then on nothing is answered."""
        self.is_away = True
        return await self.drop(request)

    async def refuse_all(self, _: web.Request) -> web.Response:
        """It is there and not ready, and from then on nothing is answered."""
        self.is_away = True
        return web.Response(status=503)

    def come_back(self) -> None:
        self.is_away = False
        self.embed = self.answer


def once(first: Handler, server: Server) -> Handler:
    """Answers the first call by `first`, all others well."""

    async def handle(request: web.Request) -> web.StreamResponse:
        server.embed = server.answer
        return await first(request)

    return handle


def refuse(error: Refusal) -> Handler:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(body=encode_refusal(error))

    return handle


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(tmp_path / "runner.sock")
    await server.start()
    yield server
    await server.end()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[RunnerClient]:
    client = RunnerClient("runner_x", f"file://{server.path}", timeout_s=5)
    yield client
    await client.close()


def call(client: RunnerClient, num_sequences: int = 1, terms: Terms | None = None) -> asyncio.Task[Reply]:
    return asyncio.create_task(client.embed(["M"] * num_sequences, POOLED, terms or within()))


async def test_calls_go_over_a_connection_that_is_kept(client: RunnerClient, server: Server) -> None:
    for _ in range(5):
        assert (await client.embed(["MK", "ML"], POOLED, within())).embeddings[0, 0] == 2
    assert len(server.connections) == 1
    assert await client.status() == {"precision": "fp32"}


async def test_hundreds_of_calls_at_once_are_all_answered(client: RunnerClient, server: Server) -> None:
    """BentoML's own proxy loses those that are under way when its session is renewed, after each hundred."""
    replies = await asyncio.gather(*(call(client, i % 7 + 1) for i in range(400)))
    assert [len(reply.lengths) for reply in replies] == [i % 7 + 1 for i in range(400)]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a socket without its name")
async def test_more_connections_are_made_when_the_name_of_the_socket_is_gone(
    client: RunnerClient, server: Server
) -> None:
    """BentoML deletes it when it is told to end, while what was let in is still worked on."""
    await client.embed(["MK"], POOLED, within())
    shutil.rmtree(server.path.parent)
    replies = await asyncio.gather(*(call(client, i + 1) for i in range(8)))
    assert [len(reply.lengths) for reply in replies] == list(range(1, 9))
    assert await client.status() == {"precision": "fp32"}
    assert len(server.connections) == 9


async def test_a_runner_is_told_on_which_terms_it_is_called(client: RunnerClient, server: Server) -> None:
    await client.embed(
        ["MK"], {"pooled": False, "dtype": "float16"}, Terms(within(2).deadline, "bulk", is_admitted=True)
    )
    await client.embed(["MK"], POOLED, within(60))
    first, second = server.requests
    assert 1 < first.pop("timeout_s") <= 2
    assert second.pop("timeout_s") == 5, "the client's own limit for a call is shorter than the request's"
    wanted = {
        "sequences": ["MK"],
        "form": {"pooled": False, "dtype": "float16"},
        "priority": "bulk",
        "is_admitted": True,
    }
    assert first == wanted
    wanted = {
        **{"sequences": ["MK"], "form": POOLED},
        **{"priority": "interactive", "is_admitted": False},
    }
    assert second == wanted


async def test_a_call_on_a_connection_that_was_dropped_is_made_again(client: RunnerClient, server: Server) -> None:
    server.embed = once(server.drop, server)
    assert (await client.embed(["M"], POOLED, within())).lengths == [1]
    assert len(server.requests) == 2


async def test_calls_that_are_lost_with_a_runner_are_made_again_when_it_is_back(
    client: RunnerClient, server: Server
) -> None:
    server.embed = server.die
    lost = [call(client, num_sequences) for num_sequences in (1, 2, 3)]
    await until(lambda: len(server.requests) == 3 and server.num_status_calls >= 2)
    assert not any(task.done() for task in lost)
    server.come_back()
    assert [len((await task).lengths) for task in lost] == [1, 2, 3]
    assert len(server.requests) == 6, "not before it answers, and once"
    num_status_calls = server.num_status_calls
    await client.embed(["M"], POOLED, within())
    assert server.num_status_calls == num_status_calls, "a runner that is back is not asked any more"


async def test_while_a_runner_is_away_new_calls_fail_at_once_and_admitted_ones_wait(
    client: RunnerClient, server: Server
) -> None:
    server.embed = server.die
    lost = call(client)
    await until(lambda: server.num_status_calls >= 1)
    for _ in range(3):
        with pytest.raises(RunnerUnavailable, match="runner_x is not back after"):
            await client.embed(["M"], POOLED, within())
    admitted = call(client, 2, within(is_admitted=True))
    num_status_calls = server.num_status_calls
    await until(lambda: server.num_status_calls >= num_status_calls + 2)
    assert not admitted.done()
    assert len(server.requests) == 1, "none of them reached it"
    server.come_back()
    assert len((await admitted).lengths) == 2
    assert len((await lost).lengths) == 1
    assert (await client.embed(["M"], POOLED, within())).lengths == [1], "and new ones are taken again"


async def test_a_call_outlives_a_real_restart(client: RunnerClient, server: Server) -> None:
    forever = asyncio.Event()

    async def hold(request: web.Request) -> web.Response:
        await forever.wait()
        return web.Response()

    server.embed = hold
    lost = call(client)
    await until(lambda: len(server.requests) == 1)
    await server.stop()
    await until(lambda: client_is_waiting(client))
    with pytest.raises(RunnerUnavailable):
        await client.embed(["M"], POOLED, within())
    admitted = call(client, 2, within(is_admitted=True))
    server.embed = server.answer
    await server.start()
    assert [len((await task).lengths) for task in (lost, admitted)] == [1, 2]


async def test_a_call_that_kills_its_runner_again_and_again_is_given_up(
    client: RunnerClient, server: Server
) -> None:
    server.embed = server.drop
    with pytest.raises(InferenceFailed, match=f"runner_x went away {MAX_ATTEMPTS} times with this call"):
        await client.embed(["M"], POOLED, within())
    assert len(server.requests) == MAX_ATTEMPTS
    server.embed = server.answer
    await until(lambda: not client_is_waiting(client))
    assert (await client.embed(["M"], POOLED, within())).lengths == [1]


def client_is_waiting(client: RunnerClient) -> bool:
    return client._return is not None


async def test_the_last_attempt_can_succeed(client: RunnerClient, server: Server) -> None:
    async def drop_but_last(request: web.Request) -> web.StreamResponse:
        is_last = len(server.requests) == MAX_ATTEMPTS
        return await (server.answer(request) if is_last else server.drop(request))

    server.embed = drop_but_last
    assert (await client.embed(["M"], POOLED, within())).lengths == [1]


async def test_a_call_does_not_wait_for_ever_for_a_return(
    client: RunnerClient, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_client, "RESTART_S", 0.05)
    server.embed = server.die
    with pytest.raises(RunnerUnavailable, match=r"runner_x is not back after 0\.05 s"):
        await client.embed(["M"], POOLED, within())
    server.come_back()
    await until(lambda: not client_is_waiting(client))
    assert (await client.embed(["M"], POOLED, within())).lengths == [1], "it is looked for all the same"


async def test_a_runner_that_lost_its_devices_is_called_again(client: RunnerClient, server: Server) -> None:
    server.embed = once(refuse(NoDevice("the last device was lost")), server)
    assert (await client.embed(["M"], POOLED, within())).lengths == [1]
    assert len(server.requests) == 2


async def test_who_comes_too_late_is_told_and_nobody_else(client: RunnerClient, server: Server) -> None:
    server.embed = refuse(TooLate(3.5))
    with pytest.raises(Overloaded, match=r"too much waits for runner_x to answer within \d.* s; try again in 4 s"):
        await client.embed(["M"], POOLED, within())
    server.embed = server.answer
    assert (await client.embed(["M"], POOLED, within())).lengths == [1], "others may have more time"


async def test_a_full_queue_is_told_with_the_time_to_wait(
    client: RunnerClient, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.embed = refuse(QueueFull(6.5))
    with pytest.raises(Overloaded, match="too much waits for runner_x; try again in 7 s") as error:
        await client.embed(["M"], POOLED, within())
    assert error.value.retry_after_s == 6.5
    assert len(server.requests) == 1
    server.embed = server.answer
    with pytest.raises(Overloaded, match="try again in 7 s"):
        await client.embed(["M"], POOLED, within())
    assert len(server.requests) == 1, "for a moment nobody asks again"
    reply = await client.embed(["M"], POOLED, replace(within(), is_admitted=True))
    assert reply.lengths == [1], "what was admitted is not refused"
    monkeypatch.setattr(client, "_full_until", 0.0)
    assert (await client.embed(["M"], POOLED, within())).lengths == [1], "it was never away"


async def test_a_runner_that_is_not_there_is_unavailable_at_once(tmp_path: Path) -> None:
    client = RunnerClient("runner_x", f"file://{tmp_path}/nobody.sock", timeout_s=5)
    with pytest.raises(RunnerUnavailable, match="runner_x does not answer"):
        await client.status()
    started = time.monotonic()
    with pytest.raises(RunnerUnavailable, match="runner_x does not answer"):
        await client.embed(["M"], POOLED, within())
    assert time.monotonic() - started < 2
    await client.close()


async def test_an_admitted_call_waits_for_a_runner_that_is_not_ready(client: RunnerClient, server: Server) -> None:
    server.embed = server.refuse_all
    admitted = call(client, 2, within(is_admitted=True))
    await until(lambda: client_is_waiting(client))
    with pytest.raises(RunnerUnavailable, match="runner_x is not back after"):
        await client.embed(["M"], POOLED, within())
    assert not admitted.done()
    server.come_back()
    assert len((await admitted).lengths) == 2
    assert [len(request["sequences"]) for request in server.requests] == [2, 2]


async def test_a_socket_that_cannot_be_held_is_told_of(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> int:
        raise OSError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        client = RunnerClient("runner_x", f"file://{server.path}", timeout_s=5)
    assert f"{server.path} is not held" in caplog.text
    assert "too many open files" in caplog.text
    assert (await client.embed(["M"], POOLED, within())).lengths == [1], "by its name"
    await client.close()


async def test_calls_that_are_lost_together_look_for_their_runner_together(
    client: RunnerClient, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    answers = asyncio.Event()
    server.status_gate = answers
    server.embed = server.drop
    lost = [call(client) for _ in range(3)]
    await until(lambda: len(caplog.records) == 3 and server.num_status_calls >= 1)
    server.embed = server.answer
    answers.set()
    await asyncio.gather(*lost)
    assert server.num_status_calls == 1


@pytest.mark.parametrize(("timeout_s", "left_s"), [(0.1, 60), (5, 0.1)])
async def test_a_call_has_a_deadline(server: Server, timeout_s: float, left_s: float) -> None:
    """Its own, or that of its request, whichever comes first."""
    forever = asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        await forever.wait()
        return web.Response()

    server.embed = wait
    client = RunnerClient("runner_x", f"file://{server.path}", timeout_s)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"runner_x took over 0\.\d+ seconds"):
        await client.embed(["M"], POOLED, within(left_s))
    assert 0.09 < time.monotonic() - started < 3
    assert len(server.requests) == 1
    forever.set()
    await client.close()


async def test_a_runner_that_ran_out_of_time_is_a_deadline(client: RunnerClient, server: Server) -> None:
    server.embed = refuse(TimeoutError("not all was done"))
    with pytest.raises(DeadlineExceeded, match="runner_x"):
        await client.embed(["M"], POOLED, within())
    assert len(server.requests) == 1


async def test_a_call_without_time_is_not_made(client: RunnerClient, server: Server) -> None:
    with pytest.raises(DeadlineExceeded, match="no time was left for runner_x"):
        await client.embed(["M"], POOLED, within(0))
    assert server.requests == []


async def test_a_call_whose_time_ends_while_the_runner_is_away_is_not_made_again(
    client: RunnerClient, server: Server
) -> None:
    server.embed = server.die
    terms = within(0.1)
    lost = call(client, 1, terms)
    await until(lambda: asyncio.get_running_loop().time() > terms.deadline)
    server.come_back()
    with pytest.raises(DeadlineExceeded, match="no time was left"):
        await lost
    assert len(server.requests) == 1


async def test_the_deadline_bounds_the_waiting_for_a_return(client: RunnerClient, server: Server) -> None:
    server.embed = server.die
    async with asyncio.timeout(1):
        with pytest.raises(DeadlineExceeded):
            await client.embed(["M"], POOLED, within(0.1))


@pytest.mark.parametrize(
    ("status", "kind"), [(500, InferenceFailed), (503, RunnerUnavailable), (504, DeadlineExceeded)]
)
async def test_a_status_of_the_runner_is_an_error_of_ours(
    client: RunnerClient, server: Server, status: int, kind: type[Exception]
) -> None:
    async def fail(request: web.Request) -> web.Response:
        return web.Response(status=status)

    server.embed = fail
    with pytest.raises(kind):
        await client.embed(["M"], POOLED, within())
    assert len(server.requests) == 1


async def test_an_error_of_the_runner_is_no_loss(client: RunnerClient, server: Server) -> None:
    async def fail(request: web.Request) -> web.Response:
        return web.Response(status=500)

    server.embed = once(fail, server)
    with pytest.raises(InferenceFailed):
        await client.embed(["M"], POOLED, within(is_admitted=True))
    assert (await client.embed(["M"], POOLED, within())).lengths == [1]


async def test_a_caller_who_is_cancelled_closes_its_connection(client: RunnerClient, server: Server) -> None:
    """By which the runner knows that nobody waits any more."""
    has_gone = asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            has_gone.set()
            raise
        return web.Response()

    server.embed = wait
    caller = call(client)
    await until(lambda: len(server.requests) == 1)
    caller.cancel()
    async with asyncio.timeout(5):
        await has_gone.wait()
    with pytest.raises(asyncio.CancelledError):
        await caller
    server.embed = server.answer
    assert (await client.embed(["M"], POOLED, within())).lengths == [1], "that was no loss of the runner's"


async def test_a_caller_who_is_cancelled_while_the_runner_is_away_leaves_the_others_waiting(
    client: RunnerClient, server: Server
) -> None:
    server.embed = server.die
    one, other = call(client, 1), call(client, 2)
    await until(lambda: len(server.requests) == 2 and server.num_status_calls >= 2)
    one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await one
    server.come_back()
    assert len((await other).lengths) == 2


async def test_status_is_answered_while_many_connections_embed(client: RunnerClient, server: Server) -> None:
    may_end = asyncio.Event()

    async def hold(request: web.Request) -> web.Response:
        await may_end.wait()
        return await server.answer(request)

    server.embed = hold
    busy = [call(client) for _ in range(300)]
    await until(lambda: len(server.requests) == 300)
    assert await asyncio.wait_for(client.status(), 2) == {"precision": "fp32"}
    may_end.set()
    assert len(await asyncio.gather(*busy)) == 300


async def test_the_reply_says_where_each_sequence_ran(client: RunnerClient, server: Server) -> None:
    assert (await client.embed(["M", "M"], POOLED, within())).devices == ["cpu", "cpu"]
