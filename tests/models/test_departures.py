"""The middleware around applications of a few lines, with a client that says what each test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from models.departures import App, EndForWhoLeft, Message, Receive, Send
from tests.models.devices import DEADLINE_S, settle

SCOPE: Message = {"type": "http", "method": "POST", "path": "/embed"}
BEGIN: Message = {"type": "http.response.start", "status": 200, "headers": []}
LEFT: Message = {"type": "http.disconnect"}


def body(content: bytes, more: bool = False) -> Message:
    return {"type": "http.request", "body": content, "more_body": more}


def part(content: bytes, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


class Client:
    """The other end of a connection: what it says and what it was told."""

    def __init__(self, *messages: Message) -> None:
        self.said: asyncio.Queue[Message] = asyncio.Queue()
        self.told: list[Message] = []
        for message in messages:
            self.said.put_nowait(message)

    async def send(self, message: Message) -> None:
        self.told.append(message)


class Ending:
    """Whether an application was cancelled where this is entered."""

    was_cancelled = False

    def __enter__(self) -> Ending:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.was_cancelled = kind is asyncio.CancelledError


async def read(receive: Receive) -> bytes:
    content: list[bytes] = []
    while True:
        message = await receive()
        assert message["type"] == "http.request"
        content.append(message["body"])
        if not message["more_body"]:
            return b"".join(content)


async def for_ever() -> None:
    await asyncio.Event().wait()


@asynccontextmanager
async def served(app: App, client: Client, scope: Message = SCOPE) -> AsyncIterator[asyncio.Task[None]]:
    """The call of an application behind the middleware, as far as it comes. At the end no task is left over."""
    before = asyncio.all_tasks()
    coroutine = EndForWhoLeft(app)(scope, client.said.get, client.send)
    call: asyncio.Task[None] = asyncio.create_task(coroutine)
    async with asyncio.timeout(DEADLINE_S):
        await settle()
        yield call
        await asyncio.wait([call])
        await settle()
        assert asyncio.all_tasks() == before


async def answer_after_body(scope: Message, receive: Receive, send: Send) -> None:
    content = await read(receive)
    await send(BEGIN)
    await send(part(content.upper()))


async def test_an_application_that_finishes_is_not_touched() -> None:
    client = Client(body(b"mkv"))
    async with served(answer_after_body, client) as call:
        await call
        assert call.cancelling() == 0
    assert client.told == [BEGIN, part(b"MKV")]


async def test_a_body_in_several_parts_passes_through() -> None:
    client = Client(body(b"mk", more=True))
    async with served(answer_after_body, client) as call:
        for content, more in ((b"", True), (b"v", True), (b"l", False)):
            assert not call.done()
            client.said.put_nowait(body(content, more))
            await settle()
        await call
    assert client.told == [BEGIN, part(b"MKVL")]


async def test_messages_reach_the_application_as_they_were_sent() -> None:
    sent: list[Message] = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.request"}]
    received: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        assert scope is SCOPE
        received.extend([await receive(), await receive()])

    async with served(app, Client(*sent)) as call:
        await call
    assert [one is other for one, other in zip(received, sent, strict=True)] == [True, True]


async def test_work_for_who_leaves_before_the_reply_is_ended() -> None:
    ending = Ending()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        with ending:
            await for_ever()

    client = Client(body(b"mkv"))
    async with served(app, client) as call:
        assert not call.done()
        client.said.put_nowait(LEFT)
        await call  # raises nothing
        assert call.cancelling() == 0
    assert ending.was_cancelled
    assert client.told == [{**BEGIN, "status": 499}, {"type": "http.response.body", "body": b""}]


async def test_a_reply_that_has_begun_is_not_ended() -> None:
    ending, go_on = Ending(), asyncio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await send(BEGIN)
        with ending:
            await go_on.wait()
        await send(part(b"all"))

    client = Client(body(b"mkv"))
    async with served(app, client) as call:
        client.said.put_nowait(LEFT)
        await settle()
        assert not call.done()
        go_on.set()
        await call
    assert not ending.was_cancelled
    assert client.told == [BEGIN, part(b"all")]


async def test_an_application_that_waits_for_the_departure_itself_hears_of_it() -> None:
    heard: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await send(BEGIN)
        heard.append(await receive())
        heard.append(await receive())  # and again, as often as it asks

    client = Client(body(b"mkv"))
    async with served(app, client) as call:
        assert heard == []
        client.said.put_nowait(LEFT)
        await call
    assert heard == [LEFT, LEFT]


async def test_who_stops_waiting_for_the_departure_may_wait_again() -> None:
    """As a streaming response does: a task of it listens, and is cancelled."""
    heard: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await send(BEGIN)
        listening = asyncio.ensure_future(receive())
        await settle()
        listening.cancel()
        heard.append(await receive())

    client = Client(body(b"mkv"))
    async with served(app, client) as call:
        client.said.put_nowait(LEFT)
        await call
    assert heard == [LEFT]


async def test_who_leaves_within_the_body_ends_the_work() -> None:
    ending = Ending()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        with ending:
            await receive()

    async with served(app, Client(body(b"mk", more=True), LEFT)) as call:
        await call
    assert ending.was_cancelled


async def test_who_leaves_within_the_body_behind_the_start_of_the_reply_does_not() -> None:
    heard: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        heard.extend([await receive(), await receive()])

    async with served(app, Client(body(b"mk", more=True), LEFT)) as call:
        await call
    assert heard == [body(b"mk", more=True), LEFT]


async def test_nothing_but_a_departure_ends_the_work() -> None:
    ending, odd = Ending(), {"type": "http.odd"}
    heard: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        with ending:
            await settle()
            heard.append(await receive())

    async with served(app, Client(body(b"mkv"), odd)) as call:
        await call
    assert not ending.was_cancelled
    assert heard == [odd]


async def test_the_look_out_begins_where_the_body_ends() -> None:
    client = Client(body(b"mk", more=True), body(b"v"), LEFT)
    ending = Ending()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await settle()
        assert client.said.qsize() == 2  # nothing is read ahead of the application
        await receive()
        with ending:
            await for_ever()

    async with served(app, client) as call:
        await call
    assert ending.was_cancelled


async def test_a_cancellation_from_outside_goes_through() -> None:
    ending = Ending()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        with ending:
            await for_ever()

    async with served(app, Client(body(b"mkv"))) as call:
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert ending.was_cancelled


async def test_a_cancellation_from_outside_goes_through_if_the_client_leaves_too() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        try:
            await for_ever()
        finally:
            await settle()  # the client's departure and the cancellation are both there by now

    client = Client(body(b"mkv"))
    async with served(app, client) as call:
        client.said.put_nowait(LEFT)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_an_applications_own_error_goes_through() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        raise ValueError("its own")

    async with served(app, Client(body(b"mkv"))) as call:
        with pytest.raises(ValueError, match="its own"):
            await call


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_what_is_not_http_passes(kind: str) -> None:
    """Its messages are none of the middleware's business: who reads ahead would take one from the application."""
    messages: list[Message] = [{"type": "http.request", "more_body": False}, LEFT]
    received: list[Message] = []
    client = Client(*messages)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        received.append(await receive())
        await settle()
        assert client.said.qsize() == 1
        received.append(await receive())
        await send(BEGIN)

    async with served(app, client, {"type": kind}) as call:
        await call
    assert received == messages
    assert client.told == [BEGIN]
