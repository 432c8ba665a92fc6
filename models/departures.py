"""Work for a client who has left is ended. ASGI alone, so that gateway and runner both have it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

CLIENT_LEFT = 499  # nginx's status for a client that closed the connection before the reply

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class EndForWhoLeft:
    """ASGI middleware: cancels the application when its client closes the connection before the reply begins.

    What happens after that (a download that is cut off) is left to the application's own means.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = _Call(receive, send)
        task = asyncio.current_task()
        assert task is not None
        try:
            await self._app(scope, lambda: call.receive(task), call.send)
        except asyncio.CancelledError:
            if not call.has_left or task.uncancel():  # cancelled by others too
                raise
        except Exception:
            if not call.has_left:
                raise
        finally:
            call.end()
        if call.has_left:
            # Nobody reads it, but whoever is between the server and this waits for a reply, and logs it
            await send({"type": "http.response.start", "status": CLIENT_LEFT, "headers": []})
            await send({"type": "http.response.body", "body": b""})


class _Call:
    """One request: its messages on their way in and out, and the look-out for its client."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._lookout: asyncio.Task[Message] | None = None
        self._has_begun = False
        self.has_left = False

    async def receive(self, task: asyncio.Task[Any]) -> Message:
        """The next message. Behind the end of the body only a disconnection can come: one task waits for it."""
        if self._lookout is not None:
            return await asyncio.shield(self._lookout)
        message = await self._receive()
        if message["type"] == "http.disconnect":  # within the body
            self.has_left = not self._has_begun
            if self.has_left:
                raise asyncio.CancelledError
        elif not message.get("more_body", False):
            self._lookout = asyncio.create_task(self._look_out(task))
        return message

    async def send(self, message: Message) -> None:
        if not self.has_left:  # else nobody reads what the application says to its own end
            self._has_begun = True
            await self._send(message)

    def end(self) -> None:
        if self._lookout is not None:
            self._lookout.cancel()

    async def _look_out(self, task: asyncio.Task[Any]) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._has_begun:
            self.has_left = True
            task.cancel()
        return message
