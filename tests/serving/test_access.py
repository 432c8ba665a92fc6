"""What is noted around every request, with an application of a few lines inside."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from prometheus_client import REGISTRY
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message

from serving.access import Access
from serving.app import create_app
from serving.auth import ledger_of
from serving.errors import RunnerUnavailable, ServiceError, StoreUnavailable
from serving.keys import Caller
from serving.replies import reply_to
from serving.telemetry import REQUEST_ID
from tests.serving.asgi import nothing, nowhere

SECRET = "1703123456_" + "0123456789abcdef" * 2


def build() -> FastAPI:
    app = FastAPI(openapi_url=None)

    @app.exception_handler(ServiceError)
    async def explain(_: Request, error: Exception) -> Response:
        return reply_to(error)

    @app.get("/downloads/{id}")
    async def download(id: str) -> str:
        return "a file"

    @app.post("/compute/{model}")
    async def compute(request: Request, model: str) -> str:
        ledger = ledger_of(request.scope)
        ledger.caller = Caller("alice")
        ledger.begin("embedding", model)
        ledger.note_lookup(hits=1, misses=2)
        ledger.num_tokens, ledger.num_computed, ledger.queue_s, ledger.inference_s = 30, 2, 0.004, 0.02
        ledger.add_header("ratelimit", "one")
        ledger.add_header("ratelimit", "two")
        return REQUEST_ID.get()

    @app.get("/away")
    async def away(request: Request) -> str:
        ledger_of(request.scope).begin("reranking", "ranker")
        ledger_of(request.scope).note_lookup(hits=0, misses=1)
        raise RunnerUnavailable("away")

    @app.get("/kept")
    async def kept() -> Response:
        return PlainTextResponse("for ever", headers={"Cache-Control": "max-age=60"})

    for path in ("/livez", "/metrics", "/docs", "/encode"):
        app.add_api_route(path, lambda: PlainTextResponse("well"), methods=["GET"])
    return app


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(Access(build(), named=frozenset({"/encode"})))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """The access lines so far."""
    caplog.set_level(logging.INFO, logger="serving.access")
    return lambda: [record for record in caplog.records if record.name == "serving.access"]


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def routes() -> set[str]:
    """Every label of a route that has been counted."""
    return {
        sample.labels["route"]
        for family in REGISTRY.collect()
        if family.name == "http_requests"
        for sample in family.samples
    }


@pytest.mark.parametrize("id", ["a", "0123456789abcdef", "trace:1.2-3_4", "x" * 64])
async def test_a_request_keeps_the_id_that_it_brings(http: httpx.AsyncClient, id: str) -> None:
    reply = await http.post("/compute/m", headers={"X-Request-Id": id})
    assert reply.headers["x-request-id"] == id
    assert reply.json() == id, "and what is logged on its way has it"
    assert REQUEST_ID.get() == ""


@pytest.mark.parametrize(
    "id", ["", " ", "a b", "x" * 65, "a\tb", "a;b", 'a"b', "a%0d%0aSet-Cookie: b", "{}", "\u00e9", "a/b", "<b>"]
)
async def test_an_id_that_could_break_a_line_or_a_header_is_replaced(http: httpx.AsyncClient, id: str) -> None:
    reply = await http.get("/livez", headers={b"x-request-id": id.encode("latin-1")})
    assert re.fullmatch(r"[0-9a-f]{16}", reply.headers["x-request-id"])


@pytest.mark.parametrize("raw", [b"a\nb", b"a\r\nset-cookie: b", b"a\n", b"\x00", b"\x1b[31m"])
async def test_an_id_with_control_characters_is_replaced(raw: bytes) -> None:
    """Servers refuse such headers; nothing here relies on it."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/livez",
        "query_string": b"",
        "headers": [(b"x-request-id", raw)],
    }
    await Access(build(), frozenset())(scope, receive, send)
    headers = dict(sent[0]["headers"])
    assert re.fullmatch(rb"[0-9a-f]{16}", headers[b"x-request-id"])


async def test_two_requests_never_share_an_id_of_ours(http: httpx.AsyncClient) -> None:
    assert len({(await http.get("/livez")).headers["x-request-id"] for _ in range(50)}) == 50


async def test_a_reply_says_what_it_has_cost(http: httpx.AsyncClient) -> None:
    headers = (await http.post("/compute/m")).headers
    assert float(headers["x-total-time"]) >= 0
    assert (headers["x-queue-time"], headers["x-inference-time"]) == ("2.00", "10.00")
    assert (headers["x-compute-tokens"], headers["x-cache"]) == ("30", "partial")
    assert headers["ratelimit"] == "one, two"


async def test_what_asked_no_model_has_cost_nothing(http: httpx.AsyncClient) -> None:
    assert not {name for name in (await http.get("/livez")).headers if name.startswith(("x-total", "x-cache"))}


@pytest.mark.parametrize("path", ["/livez", "/nowhere", "/away", "/downloads/x"])
async def test_every_reply_tells_browsers_to_do_nothing_with_it(http: httpx.AsyncClient, path: str) -> None:
    headers = (await http.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["cache-control"] == "no-store"


async def test_the_documentation_pages_may_run_their_own_scripts_and_no_others(http: httpx.AsyncClient) -> None:
    headers = (await http.get("/docs")).headers
    assert headers["content-security-policy"].startswith("default-src 'self'; script-src 'self' 'unsafe-inline'")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "cache-control" not in headers


async def test_what_says_how_long_it_is_good_for_is_left_so(http: httpx.AsyncClient) -> None:
    assert (await http.get("/kept")).headers.get_list("cache-control") == ["max-age=60"]


async def test_requests_are_counted_by_the_template_of_their_route(http: httpx.AsyncClient) -> None:
    labels = {"route": "/downloads/{id}", "method": "GET", "status": "200"}
    before = sample("http_requests_total", **labels)
    for id in ("a", "b", SECRET):
        await http.get(f"/downloads/{id}", params={"x": id})
    assert sample("http_requests_total", **labels) == before + 3
    assert sample("http_request_duration_seconds_count", route="/downloads/{id}", method="GET") >= 3
    assert sample("http_requests_in_progress") == 0


async def test_whatever_clients_make_up_is_one_label(http: httpx.AsyncClient) -> None:
    before = routes()
    for path in (
        "/nowhere",
        "/a/b/c",
        "/%ff",
        "/downloads/a/b",
        f"/{'x' * 500}",
        "/encode/x",
        "/static-offline-docs/z",
    ):
        await http.get(path)
        await http.request("BREW", path)
    assert routes() - before <= {"other", "/static-offline-docs/"}
    assert sample("http_requests_total", route="other", method="other", status="404") >= 1


async def test_a_route_of_bentomls_own_has_its_name(http: httpx.AsyncClient) -> None:
    before = sample("http_requests_total", route="/encode", method="POST", status="405")
    await http.post("/encode")
    assert sample("http_requests_total", route="/encode", method="POST", status="405") == before + 1


async def test_what_models_did_is_counted_by_kind_and_outcome(http: httpx.AsyncClient) -> None:
    def done() -> list[float]:
        return [
            sample("inference_embed_requests_total", model="m", status="success"),
            sample("inference_embed_items_total", model="m"),
            sample("inference_embed_duration_seconds_count", model="m"),
            sample("inference_rerank_requests_total", model="ranker", status="failure"),
        ]

    before = done()
    await http.post("/compute/m")
    assert (await http.get("/away")).status_code == 503
    assert [now - then for now, then in zip(done(), before, strict=True)] == [1, 3, 1, 1]


async def test_the_line_of_a_request_has_facts_and_no_secrets(http: httpx.AsyncClient, lines: Any) -> None:
    await http.post(f"/compute/m?note={SECRET}", headers={"Authorization": f"Bearer {SECRET}"})
    await http.get(f"/downloads/{SECRET}")
    first, second = lines()
    assert re.fullmatch(r"POST /compute/\{model\} 200 in [\d.]+ ms, alice", first.getMessage())
    facts = {"model": "m", "sequences": 3, "cache": "partial", "tokens": 30, "caller": "alice", "status": 200}
    assert {name: getattr(first, name) for name in facts} == facts
    assert re.fullmatch(r"GET /downloads/\{id\} 200 in [\d.]+ ms, anonymous", second.getMessage())
    assert not hasattr(second, "model")
    assert SECRET not in f"{vars(first)}{vars(second)}"


async def test_a_path_or_a_method_cannot_write_into_the_log(http: httpx.AsyncClient, lines: Any) -> None:
    await http.request("FORGED", "/%0a2026-01-01%20[INFO]%20[serving.access]%20GET%20/%20200")
    (line,) = lines()
    assert re.fullmatch(r"other other 404 in [\d.]+ ms, anonymous", line.getMessage())


@pytest.mark.parametrize("path", ["/livez", "/metrics"])
async def test_probes_are_quiet_while_all_is_well(http: httpx.AsyncClient, lines: Any, path: str) -> None:
    await http.get(path)
    assert lines() == []
    await http.post(path)
    assert [line.status for line in lines()] == [405]


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
    """By the real application, around a route that fails."""
    caplog.set_level(logging.INFO, logger="serving")
    app = create_app()

    @app.get("/failing/{id}")
    async def fail(id: str) -> None:
        raise error

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        reply = await client.get(f"/failing/{SECRET}%1B[31m")
    assert reply.status_code == status
    assert "defect" not in reply.text
    (record,) = (record for record in caplog.records if record.name == "serving.app")
    assert record.getMessage() == line
    assert SECRET not in caplog.handler.format(record)


async def test_a_failure_of_the_application_is_counted_and_passed_on(lines: Any) -> None:
    async def fail(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    before = sample("http_requests_total", route="other", method="GET", status="500")
    transport = httpx.ASGITransport(Access(fail, frozenset()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        with pytest.raises(ZeroDivisionError):
            await client.get("/")
    assert sample("http_requests_total", route="other", method="GET", status="500") == before + 1
    assert sample("http_requests_in_progress") == 0
    assert [line.status for line in lines()] == [500]


async def test_what_is_no_request_is_left_alone(tmp_path: Path) -> None:
    seen: list[str] = []

    async def note(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    for kind in ("lifespan", "websocket"):
        await Access(note, frozenset())({"type": kind}, nothing, nowhere)
    assert seen == ["lifespan", "websocket"]
