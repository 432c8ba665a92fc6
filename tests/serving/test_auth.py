"""Who is let in, with an application of a few lines behind the middleware."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.datastructures import Headers
from starlette.types import Message

from serving.auth import DOCS, METRICS, PROBES, Authentication, Doorkeeper, Operator, key_in, ledger_of, owner_of
from serving.errors import KeyMissing, KeyUnknown, ServiceError
from serving.keys import Caller
from serving.replies import reply_to
from serving.settings import Settings
from tests.serving.asgi import nothing, nowhere

ALICE, BOB, ROOT = "alice-key-0123456789", "bobs-key-9876543210!", "root-key-7777777777"
WITH_KEYS = {"api_keys": f"alice:{ALICE},bob:{BOB}"}
WITH_BOTH = {**WITH_KEYS, "admin_api_keys": f"root:{ROOT}"}
LOCAL = {"host": "127.0.0.1:3000"}


def settings_of(data_dir: Path, **values: Any) -> Settings:
    return Settings(data_dir=data_dir, **values)


class Asked:
    """An application behind the doorkeeper; every path says whose the request is, and notes it."""

    def __init__(self, settings: Settings) -> None:
        self.doorkeeper = Doorkeeper.build(settings)
        self.reached: list[str] = []
        app = FastAPI(openapi_url=None)
        app.state.gateway = SimpleNamespace(doorkeeper=self.doorkeeper)

        @app.exception_handler(ServiceError)
        async def explain(_: Request, error: Exception) -> Any:
            return reply_to(error)

        @app.api_route("/operators", dependencies=[Operator], methods=["GET", "POST"])
        async def operators() -> str:
            return "an operator"

        @app.api_route("/{path:path}", methods=["GET", "HEAD", "POST", "DELETE", "OPTIONS"])
        async def anything(request: Request, path: str) -> str:
            self.reached.append(f"/{path}")
            return await owner_of(request)

        self.app = Authentication(app, lambda: self.doorkeeper)

    async def send(
        self, method: str = "GET", path: str = "/", client: str = "192.0.2.7", **headers: str
    ) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, client=(client, 50_000))
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with httpx.AsyncClient(transport=transport, base_url="http://service.example") as http:
            return await http.request(method, path, headers=named)


@pytest.fixture
def asked(data_dir: Path) -> Asked:
    return Asked(settings_of(data_dir, **WITH_BOTH))


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({}, None),
        ({"authorization": "Bearer abc"}, "abc"),
        ({"authorization": "bearer  abc "}, "abc"),
        ({"authorization": "BEARER abc"}, "abc"),
        ({"authorization": "Bearer "}, None),
        ({"authorization": "Bearer"}, None),
        ({"authorization": "Basic abc"}, None),
        ({"authorization": "abc"}, None),
        ({"x-api-key": "abc"}, "abc"),
        ({"x-api-key": " "}, None),
        ({"authorization": "Basic for-the-proxy", "x-api-key": "abc"}, "abc"),
        ({"authorization": "Bearer one", "x-api-key": "two"}, "one"),
    ],
)
def test_where_a_key_is_found(headers: dict[str, str], key: str | None) -> None:
    assert key_in(Headers(headers)) == key


def test_of_several_headers_the_first_counts() -> None:
    raw = [(b"authorization", b"Bearer one"), (b"authorization", b"Bearer two")]
    assert key_in(Headers(raw=raw)) == "one"


@pytest.mark.parametrize("headers", [{"authorization": f"Bearer {ALICE}"}, {"x_api_key": ALICE}])
async def test_a_key_says_whose_a_request_is(asked: Asked, headers: dict[str, str]) -> None:
    reply = await asked.send(**headers)
    assert (reply.status_code, reply.json()) == (200, "alice")


async def test_a_key_of_operators_opens_everything_else_too(asked: Asked) -> None:
    assert (await asked.send(x_api_key=ROOT)).json() == "root"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/encode", "/nowhere", "/embeddings/compute/esm2_mini"])
async def test_without_a_key_nothing_is_reached_by_any_method(asked: Asked, method: str, path: str) -> None:
    reply = await asked.send(method, path)
    assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
    assert asked.reached == []


async def test_a_wrong_key_is_refused_without_saying_what_is_wrong_with_it(asked: Asked) -> None:
    for key in (ALICE[:-1], ALICE + "0", "alice", "none"):
        reply = await asked.send(x_api_key=key)
        assert (reply.status_code, reply.json()["detail"]) == (401, "nobody has this key")
        assert "www-authenticate" in reply.headers
    assert asked.reached == []


async def test_openais_clients_get_the_refusal_in_their_shape(asked: Asked) -> None:
    reply = await asked.send("POST", "/v1/embeddings")
    assert (reply.status_code, reply.json()["error"]["type"]) == (401, "authentication_error")


OPEN = [*sorted(PROBES | METRICS | DOCS), "/static-offline-docs/swagger-ui.css"]


@pytest.mark.parametrize("path", OPEN)
async def test_what_is_open_by_setting_needs_no_key(asked: Asked, path: str) -> None:
    reply = await asked.send(path=path)
    assert (reply.status_code, reply.json()) == (200, "anonymous")


@pytest.mark.parametrize("path", OPEN)
async def test_what_is_closed_by_setting_needs_one(data_dir: Path, path: str) -> None:
    closed = {"health_open": False, "metrics_open": False, "docs_open": False}
    asked = Asked(settings_of(data_dir, **WITH_KEYS, **closed))
    assert (await asked.send(path=path)).status_code == 401
    assert (await asked.send(path=path, x_api_key=ALICE)).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/metrics/",
        "//metrics",
        "/Metrics",
        "/metrics/../embeddings/config",
        "/embeddings/config;/metrics",
        "/embeddings/config%3F/metrics",
        "/embeddings/config%23/metrics",
        "/metrics%00",
        "/metrics%0A",
        "/metrics%20",
        "/metrics%2Fx",
        "/livez/x",
        "/docsx",
        "/static-offline-docs",
        "/x/static-offline-docs/y",
        "/embeddings/models?path=/metrics",
    ],
)
async def test_what_only_looks_open_is_not(asked: Asked, path: str) -> None:
    assert (await asked.send(path=path)).status_code == 401
    assert asked.reached == []


async def test_a_key_that_comes_to_an_open_path_is_not_looked_at(asked: Asked) -> None:
    reply = await asked.send(path="/metrics", x_api_key="wrong")
    assert (reply.status_code, reply.json()) == (200, "anonymous")


async def test_without_keys_everybody_is_the_same_caller(data_dir: Path) -> None:
    asked = Asked(settings_of(data_dir))
    assert (await asked.send()).json() == "anonymous"
    assert (await asked.send(authorization="Bearer none")).json() == "anonymous"


async def test_with_keys_of_operators_alone_the_others_need_none(data_dir: Path) -> None:
    asked = Asked(settings_of(data_dir, admin_api_keys=f"root:{ROOT}"))
    assert (await asked.send()).json() == "anonymous"
    assert (await asked.send(path="/operators")).status_code == 403
    assert (await asked.send(path="/operators", x_api_key=ROOT)).status_code == 200


def test_the_doorkeeper_tells_the_kinds_of_refusal_apart(data_dir: Path) -> None:
    doorkeeper = Doorkeeper.build(settings_of(data_dir, **WITH_BOTH))
    assert doorkeeper.identify(Headers({"x-api-key": ALICE})) == Caller("alice")
    assert doorkeeper.identify(Headers({"x-api-key": ROOT})) == Caller("root", is_admin=True)
    with pytest.raises(KeyMissing):
        doorkeeper.identify(Headers({}))
    with pytest.raises(KeyUnknown):
        doorkeeper.identify(Headers({"x-api-key": "nobody's"}))


@pytest.mark.parametrize("headers", [[], [(b"x-api-key", ALICE.encode())]], ids=["no key", "a key"])
async def test_websockets_are_closed_whoever_opens_them(asked: Asked, headers: list[tuple[bytes, bytes]]) -> None:
    for path in ("/encode", "/metrics"):
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "websocket.connect"}

        async def send(message: Message, sent: list[Message] = sent) -> None:
            sent.append(message)

        scope = {"type": "websocket", "path": path, "headers": headers}
        await asked.app(scope, receive, send)
        assert sent == [{"type": "websocket.close", "code": 1008}]
    assert asked.reached == []


async def test_what_is_no_request_is_left_alone(asked: Asked) -> None:
    seen: list[str] = []

    async def note(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    await Authentication(note, lambda: asked.doorkeeper)({"type": "lifespan"}, nothing, nowhere)
    assert seen == ["lifespan"]


def test_a_ledger_is_made_once_for_a_request() -> None:
    scope: dict[str, Any] = {}
    ledger = ledger_of(scope)
    ledger.caller = Caller("alice")
    assert ledger_of(dict(scope)) is ledger


async def test_what_operators_may_is_forbidden_to_others(asked: Asked) -> None:
    for client in ("192.0.2.7", "127.0.0.1"):
        reply = await asked.send("POST", "/operators", client=client, x_api_key=ALICE, host="127.0.0.1:3000")
        assert (reply.status_code, reply.json()["error"]) == (403, "Forbidden")
    assert (await asked.send("POST", "/operators", x_api_key=ROOT)).status_code == 200


@pytest.fixture
def unguarded(data_dir: Path) -> Asked:
    """A service without any keys: whoever sits at the machine is its operator."""
    return Asked(settings_of(data_dir))


@pytest.mark.parametrize(
    "host", ["127.0.0.1:3000", "localhost:3000", "localhost", "LOCALHOST", "[::1]:3000", "[::1]"]
)
@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.8.8", "::1"])
async def test_without_keys_who_sits_at_the_machine_is_an_operator(
    unguarded: Asked, host: str, client: str
) -> None:
    for method in ("GET", "POST"):
        assert (await unguarded.send(method, "/operators", client, host=host)).status_code == 200


@pytest.mark.parametrize("client", ["192.0.2.7", "10.0.0.1", "::ffff:192.0.2.7", "2001:db8::1", "testclient", ""])
async def test_who_comes_over_the_network_is_none_whatever_host_he_names(unguarded: Asked, client: str) -> None:
    assert (await unguarded.send(path="/operators", client=client, host="localhost")).status_code == 403


@pytest.mark.parametrize(
    "header",
    [
        {"forwarded": "for=192.0.2.7"},
        {"x_forwarded_for": "127.0.0.1"},
        {"x_forwarded_host": "localhost"},
        {"x_forwarded_proto": "https"},
        {"x_forwarded_port": "443"},
        {"x_real_ip": "127.0.0.1"},
        {"via": "1.1 proxy"},
        {"cf_connecting_ip": "127.0.0.1"},
        {"true_client_ip": "127.0.0.1"},
        {"x_client_ip": "127.0.0.1"},
        {"x_envoy_external_address": "192.0.2.7"},
        {"x_original_forwarded_for": "192.0.2.7"},
    ],
)
async def test_who_comes_through_a_proxy_of_this_machine_is_none(unguarded: Asked, header: dict[str, str]) -> None:
    reply = await unguarded.send(path="/operators", client="127.0.0.1", **LOCAL, **header)
    assert reply.status_code == 403


async def test_a_proxy_that_says_nothing_of_itself_is_known_by_its_old_protocol(unguarded: Asked) -> None:
    """nginx, as it is set when nobody sets it: HTTP/1.0, its own address as Host, no header of its own."""
    inner = unguarded.app

    async def of_old(scope: Any, receive: Any, send: Any) -> None:
        await inner({**scope, "http_version": "1.0"}, receive, send)

    transport = httpx.ASGITransport(of_old, client=("127.0.0.1", 50_000))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:3000") as http:
        assert (await http.get("/operators")).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "rebound.example:3000"},  # a name of the page's own, that resolves to this machine
        {"host": "localhost.example"},
        {"host": "localhost.:3000"},
        {"host": "127.0.0.1.example:3000"},
        {"host": "localhost:3000@rebound.example"},
        {"host": ""},
        {**LOCAL, "origin": "https://rebound.example"},
        {**LOCAL, "origin": "http://127.0.0.1:8888"},  # another server of this machine
        {**LOCAL, "origin": "http://localhost:3000"},  # not the name that was asked
        {**LOCAL, "origin": "https://127.0.0.1:3000"},
        {**LOCAL, "origin": "null"},
        {**LOCAL, "sec_fetch_site": "cross-site"},
        {**LOCAL, "sec_fetch_site": "same-site"},
        {**LOCAL, "sec_fetch_site": ""},
    ],
)
async def test_a_page_of_elsewhere_in_a_browser_of_this_machine_is_none(
    unguarded: Asked, headers: dict[str, str]
) -> None:
    for method in ("GET", "POST"):
        assert (await unguarded.send(method, "/operators", "127.0.0.1", **headers)).status_code == 403


@pytest.mark.parametrize("site", ["none", "same-origin"])
async def test_the_services_own_pages_are_at_the_machine(unguarded: Asked, site: str) -> None:
    own = {**LOCAL, "origin": "http://127.0.0.1:3000", "sec_fetch_site": site}
    assert (await unguarded.send("POST", "/operators", "127.0.0.1", **own)).status_code == 200


async def test_two_hosts_are_none(unguarded: Asked) -> None:
    scope_headers = [(b"host", b"localhost"), (b"host", b"rebound.example")]
    inner = unguarded.app

    async def twice(scope: Any, receive: Any, send: Any) -> None:
        await inner({**scope, "headers": scope_headers}, receive, send)

    transport = httpx.ASGITransport(twice, client=("127.0.0.1", 50_000))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        assert (await http.get("/operators")).status_code == 403


@pytest.mark.parametrize("name", ["api_keys", "admin_api_keys"])
def test_a_start_with_a_wrong_key_is_refused(data_dir: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name.upper()}: entry 1 "):
        Doorkeeper.build(settings_of(data_dir, **{name: "alice"}))
    with pytest.raises(ValueError, match=f"^{name.upper()}_FILE: "):
        Doorkeeper.build(settings_of(data_dir, **{f"{name}_file": data_dir / "nowhere"}))


async def test_a_key_of_both_is_an_operators(data_dir: Path) -> None:
    keys = {"api_keys": f"alice:{ALICE}", "admin_api_keys": f"root:{ALICE}"}
    doorkeeper = Doorkeeper.build(settings_of(data_dir, **keys))
    assert doorkeeper.identify(Headers({"x-api-key": ALICE})) == Caller("root", is_admin=True)
