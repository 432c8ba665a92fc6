"""What a runner is sent. ASGI alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.departures import App, Receive, Send

_JSON = b"application/json"
UNSUPPORTED = 415


class JsonAlone:
    """ASGI middleware: nothing but JSON is read.

    Behind a gateway, BentoML unpickles what says that it is a pickle, and a pickle can run code.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_json(scope):
            await send({"type": "http.response.start", "status": UNSUPPORTED, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await self._app(scope, receive, send)


def _is_json(scope: Mapping[str, Any]) -> bool:
    """Whether every media type that is named is JSON; where none is, BentoML reads JSON too."""
    named = [value for name, value in scope["headers"] if name.lower() == b"content-type"]
    return all(value.partition(b";")[0].strip().lower() == _JSON for value in named)
