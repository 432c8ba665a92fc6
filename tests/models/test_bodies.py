"""What a runner reads, and what it refuses unread."""

from __future__ import annotations

from typing import Any

import pytest

from models.bodies import JsonAlone

PICKLE = b"application/vnd.bentoml+pickle"


async def ask(*media_types: bytes, kind: str = "http") -> tuple[list[str], list[int]]:
    """Kinds of scope that the application saw, and statuses that were sent instead."""
    seen: list[str] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def receive() -> Any:
        raise AssertionError("the body is not read")

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", media_type) for media_type in media_types]
    await JsonAlone(app)({"type": kind, "headers": headers}, receive, send)
    return seen, [message["status"] for message in sent if "status" in message]


@pytest.mark.parametrize("media_types", [(), (b"application/json",), (b"Application/JSON; charset=utf-8",)])
async def test_json_is_read(media_types: tuple[bytes, ...]) -> None:
    assert await ask(*media_types) == (["http"], [])


@pytest.mark.parametrize(
    "media_types",
    [
        (PICKLE,),
        (PICKLE + b"; charset=utf-8",),
        (b" " + PICKLE,),
        (PICKLE, b"application/json"),
        (b"application/json", PICKLE),
        (b"multipart/form-data; boundary=x",),
        (b"application/x-www-form-urlencoded",),
        (b"",),
    ],
)
async def test_anything_else_is_refused_unread(media_types: tuple[bytes, ...]) -> None:
    assert await ask(*media_types) == ([], [415])


async def test_what_is_no_request_is_left_alone() -> None:
    assert await ask(kind="lifespan") == (["lifespan"], [])
