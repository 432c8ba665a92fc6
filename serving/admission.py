"""What is refused before it is worked on: bodies that are too large, requests beyond what a worker takes on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import BodyTooLarge, Overloaded, ShuttingDown
from serving.replies import reply_to

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1.0  # requests come and go: one second later there may be room


class UnderWay:
    """The requests that a process has let in."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self.is_over = False

    @contextlib.contextmanager
    def one_more(self) -> Iterator[None]:
        """A request, in the task that works on it."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    def end(self) -> None:
        """Ends them all; each is to be told why."""
        self.is_over = True
        if self._tasks:
            logger.warning("%d requests are ended unfinished", len(self._tasks))
        for task in self._tasks:
            task.cancel()


class Admission:
    """ASGI middleware for what has a body (POST).

    Args:
        max_requests: that are worked on at the same time.
        max_body_bytes: of one body; counted while it is read, so that no more than that is ever held.
        max_bytes_of: the same for some paths.
        under_way: where they are noted.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_requests: int,
        max_body_bytes: int,
        max_bytes_of: Mapping[str, int] | None = None,
        under_way: Callable[[], UnderWay] = UnderWay,
    ) -> None:
        self._app = app
        self._under_way = under_way
        self._max_requests = max_requests
        self._max_body_bytes = max_body_bytes
        self._max_bytes_of = max_bytes_of or {}
        self._num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._num_requests >= self._max_requests:
            busy = Overloaded(f"{self._max_requests} requests are being worked on", RETRY_AFTER_S)
            await reply_to(busy, scope["path"])(scope, receive, send)
            return
        self._num_requests += 1
        try:
            await self._until_the_end(scope, receive, send)
        finally:
            self._num_requests -= 1

    async def _until_the_end(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Who is still waiting when the process must end hears of it, unless his reply has begun."""
        under_way, has_begun = self._under_way(), False

        async def note(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            with under_way.one_more():
                await self._read_within_limit(scope, receive, note)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if has_begun or not under_way.is_over or task is None or task.uncancel():
                raise
            await reply_to(ShuttingDown("the service was told to end"), scope["path"])(scope, receive, send)

    async def _read_within_limit(self, scope: Scope, receive: Receive, send: Send) -> None:
        max_bytes = self._max_bytes_of.get(scope["path"], self._max_body_bytes)
        too_large = BodyTooLarge(f"the body is over {max_bytes / 1e6:g} MB")
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > max_bytes:
            await reply_to(too_large, scope["path"])(scope, receive, send)
            return
        num_bytes, has_begun = 0, False

        async def count() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > max_bytes:
                raise too_large
            return message

        async def pass_on(message: Message) -> None:
            nonlocal has_begun
            if has_begun or num_bytes <= max_bytes:  # else whoever read the body explains it his own way
                has_begun = True
                await send(message)

        try:
            await self._app(scope, count, pass_on)
        except Exception:
            if num_bytes <= max_bytes:
                raise
        if num_bytes > max_bytes and not has_begun:
            await reply_to(too_large, scope["path"])(scope, receive, send)
