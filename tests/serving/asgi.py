"""The two ends of an ASGI application that nobody is at."""

from __future__ import annotations

from starlette.types import Message


async def nothing() -> Message:
    raise AssertionError("nobody asks")


async def nowhere(message: Message) -> None:
    raise AssertionError("nobody answers")
