"""What the log has of an error, with the real application around a route that fails."""

from __future__ import annotations

import logging

import httpx
import pytest

from serving.app import create_app
from serving.errors import StoreUnavailable

ID = "1703123456_" + "0123456789abcdef" * 2


async def ask(error: Exception) -> httpx.Response:
    app = create_app()

    @app.get("/failing/{id}")
    async def fail(id: str) -> None:
        raise error

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        return await http.get(f"/failing/{ID}%1B[31m")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (StoreUnavailable("Redis is away"), 503, "GET /failing/{id}: Redis is away"),
        (ZeroDivisionError("defect"), 500, "GET /failing/{id} failed"),
    ],
)
async def test_an_error_is_logged_without_the_id_that_was_asked_for(
    caplog: pytest.LogCaptureFixture, error: Exception, status: int, line: str
) -> None:
    caplog.set_level(logging.INFO, logger="serving")
    reply = await ask(error)
    assert reply.status_code == status
    assert "defect" not in reply.text
    (record,) = (record for record in caplog.records if record.name == "serving.app")
    assert record.getMessage() == line
    assert ID not in caplog.handler.format(record)
