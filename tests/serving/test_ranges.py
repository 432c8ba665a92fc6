"""Parts of a file that is not on this machine, as RFC 9110 has them asked for."""

from __future__ import annotations

from collections.abc import MutableMapping
from io import BytesIO
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.responses import Response

from serving import ranges
from serving.ranges import stream_range

CONTENT = bytes(range(100))
ETAG = "token-embeddings.npz"


class Watched(BytesIO):
    """Notes the sizes that it is read in."""

    def __init__(self, content: bytes = CONTENT) -> None:
        super().__init__(content)
        self.sizes: list[int] = []

    def read(self, size: int | None = -1, /) -> bytes:
        self.sizes.append(-1 if size is None else size)
        return super().read(size)


def ask(file: BytesIO, size_bytes: int = len(CONTENT), **headers: str) -> Response:
    asked = Headers({name.replace("_", "-"): value for name, value in headers.items()})
    return stream_range(file, size_bytes, asked, ETAG, "application/x-npz", "embeddings.npz")


async def body_of(reply: Response) -> bytes:
    """What a server would send."""
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError("nobody asks")

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
    await reply(scope, receive, send)
    assert sent[0]["status"] == reply.status_code
    return b"".join(message["body"] for message in sent[1:])


async def test_without_a_range_all_of_it_comes() -> None:
    reply = ask(Watched())
    assert reply.status_code == 200
    assert reply.headers["content-length"] == "100"
    assert reply.headers["accept-ranges"] == "bytes"
    assert reply.headers["etag"] == f'"{ETAG}"'
    assert reply.headers["content-type"] == "application/x-npz"
    assert reply.headers["content-disposition"] == 'attachment; filename="embeddings.npz"'
    assert "content-range" not in reply.headers
    assert await body_of(reply) == CONTENT


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-", 0, 100),
        ("bytes=40-", 40, 100),
        ("bytes=99-", 99, 100),
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=10-99", 10, 100),
        ("bytes=10-100", 10, 100),
        ("bytes=10-9999999999999999", 10, 100),
        ("bytes=-1", 99, 100),
        ("bytes=-100", 0, 100),
        ("bytes=-101", 0, 100),
        ("bytes=007-008", 7, 9),
    ],
)
async def test_a_range_comes_as_it_was_asked_for(asked: str, start: int, stop: int) -> None:
    reply = ask(Watched(), range=asked)
    assert reply.status_code == 206
    assert reply.headers["content-range"] == f"bytes {start}-{stop - 1}/100"
    assert reply.headers["content-length"] == str(stop - start)
    assert await body_of(reply) == CONTENT[start:stop]


@pytest.mark.parametrize("asked", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=99999-"])
async def test_a_range_beyond_the_end_is_refused_with_the_size(asked: str) -> None:
    file = Watched()
    reply = ask(file, range=asked)
    assert (reply.status_code, reply.headers["content-range"]) == (416, "bytes */100")
    assert await body_of(reply) == b""
    assert file.closed


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=0-1,5-6",
        "bytes=-",
        "bytes=",
        "bytes=20-10",
        "bytes=a-b",
        "bytes=1",
        "bytes=--1",
        "bytes = 0-1",
        "lines=0-1",
        "0-1",
        "",
        "bytes=" + "9" * 5000 + "-",
        "bytes=-" + "9" * 5000,
        "bytes=\xb2-",
    ],
    ids=lambda asked: repr(asked[:12]),
)
async def test_what_is_not_understood_is_answered_with_the_whole(asked: str) -> None:
    reply = ask(Watched(), range=asked)
    assert reply.status_code == 200
    assert await body_of(reply) == CONTENT


@pytest.mark.parametrize(
    ("held", "status"),
    [(f'"{ETAG}"', 206), ('"another"', 200), (f'W/"{ETAG}"', 200), ("Sat, 21 Nov 2026 00:00:00 GMT", 200)],
)
async def test_a_download_goes_on_only_if_the_file_is_the_same(held: str, status: int) -> None:
    reply = ask(Watched(), range="bytes=40-", if_range=held)
    assert reply.status_code == status
    assert await body_of(reply) == (CONTENT[40:] if status == 206 else CONTENT)


async def test_a_file_is_read_in_pieces_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "CHUNK_BYTES", 30)
    file = Watched()
    assert await body_of(ask(file, range="bytes=5-74")) == CONTENT[5:75]
    assert file.sizes == [30, 30, 10], "and not a byte beyond the range"
    assert file.closed


async def test_a_file_that_became_shorter_is_an_error_and_not_a_shorter_reply() -> None:
    file = Watched(CONTENT[:60])
    with pytest.raises(EOFError, match="shorter than it was"):
        await body_of(ask(file))
    assert file.closed
