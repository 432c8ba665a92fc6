"""Replies with a part of a file that is not on this machine. Local files are starlette's own business."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import BinaryIO

from starlette.responses import Response, StreamingResponse

from serving.threads import run_to_its_end

CHUNK_BYTES = 1_000_000
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def stream_range(
    file: BinaryIO, size_bytes: int, headers: Mapping[str, str], etag: str, media_type: str, filename: str
) -> Response:
    """The file from an open, seekable one, or the range of it that a request's headers ask for (RFC 9110, 14).

    One range is served; several, or one that cannot be read, are answered with the whole file.
    """
    quoted = f'"{etag}"'
    own = {
        "Accept-Ranges": "bytes",
        "ETag": quoted,
        "Content-Disposition": f'attachment; filename="{filename}"',
    }
    found = _RANGE.fullmatch(headers.get("range", ""))
    first, last = found.groups() if found else ("", "")
    is_readable = int(first) <= int(last) if first and last else bool(first or last)
    start, stop = 0, size_bytes
    if is_readable and headers.get("if-range", quoted) == quoted:
        start = int(first) if first else max(0, size_bytes - int(last))
        stop = min(size_bytes, int(last) + 1) if first and last else size_bytes
        if start >= stop:
            file.close()
            return Response(status_code=416, headers={"Content-Range": f"bytes */{size_bytes}"})
        own["Content-Range"] = f"bytes {start}-{stop - 1}/{size_bytes}"
    own["Content-Length"] = str(stop - start)
    status = 206 if "Content-Range" in own else 200
    return StreamingResponse(_read(file, start, stop), status, own, media_type)


async def _read(file: BinaryIO, start: int, stop: int) -> AsyncIterator[bytes]:
    try:
        await run_to_its_end(lambda: file.seek(start))
        while start < stop:
            size = min(CHUNK_BYTES, stop - start)
            chunk = await run_to_its_end(lambda size=size: file.read(size))  # type: ignore[misc]
            if not chunk:
                raise EOFError("the file is shorter than it was")  # an OSError would pass for a client who left
            start += len(chunk)
            yield chunk
    finally:
        file.close()
