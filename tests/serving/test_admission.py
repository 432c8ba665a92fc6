"""What is refused before it is worked on, with applications of a few lines behind the middleware."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.admission import Admission, UnderWay
from serving.errors import BodyTooLarge, Overloaded, RunnerUnavailable, ShuttingDown
from serving.replies import reply_to

LIMIT = 10  # bytes


class Reader:
    """Reads the whole body and says how long it is. `received` counts what it was given, of all requests."""

    def __init__(self) -> None:
        self.received = 0
        self.num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.num_requests += 1
        num_bytes, more = 0, True
        while more:
            message = await receive()
            num_bytes += len(message["body"])
            self.received += len(message["body"])
            more = message.get("more_body", False)
        await PlainTextResponse(str(num_bytes))(scope, receive, send)


class Swallower(Reader):
    """Answers whatever goes wrong in words of its own, in several messages."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except Exception:
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b"bad ", "more_body": True})
            await send({"type": "http.response.body", "body": b"body"})


class Silent(Reader):
    """Swallows what goes wrong and answers nothing."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except BodyTooLarge:
            pass


class Gated:
    """Answers once `gate` is open; `num_running` waits there."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.num_running = 0
        self.changed = asyncio.Condition()
        self.failure: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._note(1)
        try:
            await self.gate.wait()
            if self.failure is not None:
                raise self.failure
            await PlainTextResponse("done")(scope, receive, send)
        finally:
            await self._note(-1)

    async def _note(self, change: int) -> None:
        async with self.changed:
            self.num_running += change
            self.changed.notify_all()

    async def runs(self, count: int) -> None:
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(lambda: self.num_running == count)


def client_of(app: ASGIApp, max_requests: int = 100) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(Admission(app, max_requests, LIMIT))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


async def chunked(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def assert_is_too_large(reply: httpx.Response) -> None:
    assert reply.status_code == 413
    assert reply.json() == {"error": "Body too large", "detail": "the body is over 1e-05 MB"}
    assert "retry-after" not in reply.headers


@pytest.mark.parametrize("size", [0, 1, LIMIT])
async def test_a_body_up_to_the_limit_passes(size: int) -> None:
    for content in (b"x" * size, chunked([b"x"] * size)):
        async with client_of(Reader()) as client:
            reply = await client.post("/", content=content)
        assert (reply.status_code, reply.text) == (200, str(size))


async def test_a_body_that_announces_more_is_refused_unread() -> None:
    app = Reader()
    async with client_of(app) as client:
        assert_is_too_large(await client.post("/", content=b"x" * (LIMIT + 1)))
    assert app.num_requests == 0


@pytest.mark.parametrize("kind", [Reader, Swallower, Silent])
@pytest.mark.parametrize("headers", [{}, {"content-length": "1"}], ids=["unannounced", "announced as less"])
@pytest.mark.parametrize("chunk", [1, 3, 11, 1000])
async def test_a_body_that_turns_out_larger_is_refused_and_never_held(
    kind: Callable[[], Reader], headers: dict[str, str], chunk: int
) -> None:
    """Whatever the application makes of the error."""
    app = kind()
    async with client_of(app) as client:
        assert_is_too_large(await client.post("/", content=chunked([b"x" * chunk] * 20), headers=headers))
    assert app.received <= LIMIT
    assert app.num_requests == 1


async def test_a_reply_to_a_body_within_the_limit_is_passed_on_as_it_is() -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("no", 418)(scope, receive, send)

    async with client_of(refuse) as client:
        reply = await client.post("/", content=b"x" * LIMIT)
    assert (reply.status_code, reply.text) == (418, "no")


async def test_an_error_of_the_application_is_passed_on() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    async with client_of(fail) as client:
        with pytest.raises(ZeroDivisionError):
            await client.post("/", content=b"x")


async def test_more_requests_than_a_worker_takes_on_are_told_to_come_again() -> None:
    app = Gated()
    async with client_of(app, max_requests=2) as client:
        busy = [asyncio.create_task(client.post("/")) for _ in range(2)]
        await app.runs(2)
        reply = await client.post("/", content=b"x")
        assert reply.status_code == 429
        assert reply.headers["retry-after"] == "1"
        assert reply.json() == {
            "error": "Overloaded",
            "detail": "2 requests are being worked on; try again in 1 s",
        }
        app.gate.set()
        assert [(await task).status_code for task in busy] == [200, 200]
        assert (await client.post("/")).status_code == 200


async def test_as_many_as_a_worker_takes_on_go_on_together_again_and_again() -> None:
    app = Gated()
    async with client_of(app, max_requests=2) as client:
        for _ in range(3):
            app.gate.clear()
            busy = [asyncio.create_task(client.post("/")) for _ in range(2)]
            await app.runs(2)
            app.gate.set()
            assert [(await task).status_code for task in busy] == [200, 200]


async def test_a_request_that_fails_frees_its_place() -> None:
    app = Gated()
    app.gate.set()
    async with client_of(app, max_requests=1) as client:
        app.failure = ZeroDivisionError()
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await client.post("/")
        app.failure = None
        assert (await client.post("/")).status_code == 200


async def test_a_request_that_is_cancelled_frees_its_place() -> None:
    app = Gated()
    async with client_of(app, max_requests=1) as client:
        for _ in range(2):
            task = asyncio.create_task(client.post("/"))
            await app.runs(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        app.gate.set()
        assert (await client.post("/")).status_code == 200


@pytest.mark.parametrize("content", [b"x" * 11, chunked([b"x" * 11])], ids=["announced", "chunked"])
async def test_a_body_that_is_too_large_frees_its_place(content: bytes | AsyncIterator[bytes]) -> None:
    async with client_of(Reader(), max_requests=1) as client:
        assert (await client.post("/", content=content)).status_code == 413
        assert (await client.post("/", content=b"x")).status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_what_has_no_body_passes_always(method: str) -> None:
    """Probes of health are answered by a worker that has its hands full."""
    app = Gated()

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await app(scope, receive, send)
        else:
            await PlainTextResponse("well")(scope, receive, send)

    async with client_of(route, max_requests=1) as client:
        busy = asyncio.create_task(client.post("/"))
        await app.runs(1)
        for _ in range(3):
            assert (await client.request(method, "/")).status_code == 200
        app.gate.set()
        assert (await busy).status_code == 200


async def test_what_is_no_request_is_left_alone() -> None:
    seen: list[str] = []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def nothing() -> Message:
        raise AssertionError("nobody asks")

    async def nowhere(message: Message) -> None:
        raise AssertionError("nobody answers")

    middleware = Admission(note, max_requests=1, max_body_bytes=LIMIT)
    for kind in ("lifespan", "websocket"):
        await middleware({"type": kind}, nothing, nowhere)
    assert seen == ["lifespan", "websocket"]


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (Overloaded("full", 2.1), 429, "3"),
        (RunnerUnavailable("away"), 503, "15"),
        (ShuttingDown("the end"), 503, "5"),
        (BodyTooLarge("much"), 413, None),
        (KeyError("x"), 500, None),
    ],
)
def test_a_reply_says_when_to_come_again_where_that_makes_sense(
    error: Exception, status: int, retry_after: str | None
) -> None:
    reply = reply_to(error)
    body: dict[str, Any] = json.loads(bytes(reply.body))
    assert (reply.status_code, reply.headers.get("retry-after")) == (status, retry_after)
    assert set(body) == {"error", "detail"}


def ending(app: ASGIApp, under_way: UnderWay) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(Admission(app, 10, LIMIT, under_way=lambda: under_way))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


async def test_who_waits_when_the_process_must_end_is_told_so() -> None:
    app, under_way = Gated(), UnderWay()
    async with ending(app, under_way) as client:
        waiting = [asyncio.create_task(client.post("/v1/x" if i else "/")) for i in range(2)]
        await app.runs(2)
        under_way.end()
        first, second = [await task for task in waiting]
    for reply in (first, second):
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
    assert first.json() == {"error": "Shutting down", "detail": "the service was told to end"}
    assert second.json()["error"]["type"] == "server_error"
    await app.runs(0)


async def test_a_reply_that_has_begun_is_not_begun_again_when_the_process_ends() -> None:
    begun, under_way = asyncio.Event(), UnderWay()
    sent: list[Message] = []

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        begun.set()
        await asyncio.Event().wait()

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message)

    middleware = Admission(stream, 10, LIMIT, under_way=lambda: under_way)
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    task = asyncio.create_task(middleware(scope, receive, send))
    await begun.wait()
    under_way.end()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [message["type"] for message in sent] == ["http.response.start"]


async def test_a_client_who_leaves_at_the_end_is_told_nothing() -> None:
    app, under_way = Gated(), UnderWay()
    async with ending(app, under_way) as client:
        task = asyncio.create_task(client.post("/"))
        await app.runs(1)
        under_way.is_over = True  # and somebody else cancels
        task.cancel()
        under_way.end()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_what_is_over_is_not_ended() -> None:
    app, under_way = Gated(), UnderWay()
    app.gate.set()
    async with ending(app, under_way) as client:
        assert (await client.post("/")).status_code == 200
        under_way.end()
        assert (await client.post("/")).status_code == 200, "who was let in by the server is answered"


async def test_requests_without_a_body_are_not_ended() -> None:
    """Probes say how the end goes on."""
    under_way = UnderWay()

    async def well(scope: Scope, receive: Receive, send: Send) -> None:
        under_way.end()
        await PlainTextResponse("well")(scope, receive, send)

    async with ending(well, under_way) as client:
        assert (await client.get("/livez")).status_code == 200
