"""Who is let in: every route needs a key where keys are set, but for those that are open by setting."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import KeyMissing, KeyNotAllowed, KeyUnknown, ServiceError
from serving.keys import Caller, Keys
from serving.ledger import Ledger
from serving.measures import measures_of_process
from serving.rates import RateLimits
from serving.replies import reply_to
from serving.settings import Settings

PROBES = frozenset({"/livez", "/readyz", "/healthz", "/health/live", "/health/ready", "/ready"})
METRICS = frozenset({"/metrics"})
DOCS = frozenset({"/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json", "/docs.json", "/schema.json"})
DOCS_FILES = "/static-offline-docs/"
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
# By which a proxy tells whom it speaks for, or that it is one
_FORWARDED = frozenset(
    {"forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "true-client-ip", "cf-connecting-ip"}
)
_FORWARDED_FAMILIES = ("x-forwarded-", "x-original-", "x-envoy-")

# For the documentation pages, which get a field for the key
DOCUMENTED = [
    Depends(HTTPBearer(auto_error=False)),
    Depends(APIKeyHeader(name="X-API-Key", auto_error=False)),
]


@dataclass(frozen=True)
class Doorkeeper:
    """The keys of callers and of operators, what is open without, and how much each caller may ask for."""

    keys: Keys
    admin_keys: Keys
    open_paths: frozenset[str]
    docs_are_open: bool
    limits: RateLimits

    @classmethod
    def build(cls, settings: Settings) -> Doorkeeper:
        """
        Raises:
            ValueError: a key or a file of keys is wrong.
        """
        s = settings
        keys = Keys("API_KEYS", s.api_keys.get_secret_value(), s.api_keys_file)
        admin_keys = Keys("ADMIN_API_KEYS", s.admin_api_keys.get_secret_value(), s.admin_api_keys_file)
        open_paths = (PROBES if s.health_open else frozenset()) | (METRICS if s.metrics_open else frozenset())
        if s.docs_open:
            open_paths |= DOCS
        limits = RateLimits(s)
        return cls(keys, admin_keys, open_paths, s.docs_open, limits)

    def is_open(self, path: str) -> bool:
        return path in self.open_paths or (self.docs_are_open and path.startswith(DOCS_FILES))

    def identify(self, headers: Headers) -> Caller:
        """Whose request this is.

        Raises:
            KeyMissing: it brings no key, and needs one.
            KeyUnknown: nobody has the key that it brings.
        """
        key = key_in(headers)
        if key is not None:
            if (name := self.admin_keys.name_of(key)) is not None:
                return Caller(name, is_admin=True)
            if (name := self.keys.name_of(key)) is not None:
                return Caller(name)
        if not self.keys.is_set:
            return Caller()
        if key is None:
            raise KeyMissing("send a key: Authorization: Bearer KEY, or X-API-Key: KEY")
        raise KeyUnknown("nobody has this key")


def key_in(headers: Headers) -> str | None:
    """The key of a request; None where it brings none."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key", "").strip() or None


class Authentication:
    """ASGI middleware: refuses who has no key, and who asks too often. The caller is noted in the ledger."""

    def __init__(self, app: ASGIApp, doorkeeper: Callable[[], Doorkeeper]) -> None:
        self._app, self._doorkeeper = app, doorkeeper

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        doorkeeper, ledger = self._doorkeeper(), ledger_of(scope)
        is_open = scope["type"] == "http" and doorkeeper.is_open(scope["path"])
        try:
            if not is_open:
                ledger.caller = doorkeeper.identify(Headers(scope=scope))
                if scope["type"] == "websocket":
                    raise KeyNotAllowed("there are no websockets here")
                await doorkeeper.limits.take_request(ledger)
        except ServiceError as error:
            if isinstance(error, KeyMissing | KeyUnknown):
                measures_of_process().refused.labels(error.reason).inc()
            await _refuse(error, scope, receive, send)
            return
        await self._app(scope, receive, send)


async def _refuse(error: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
        return

    async def say_which_kind(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 401:
            message["headers"] = [*message["headers"], (b"www-authenticate", b"Bearer")]
        await send(message)

    await reply_to(error, scope["path"])(scope, receive, say_which_kind)


def ledger_of(scope: Scope) -> Ledger:
    """The ledger of a request; made here where nothing before has made it."""
    state = scope.setdefault("state", {})
    if "ledger" not in state:
        state["ledger"] = Ledger()
    ledger: Ledger = state["ledger"]
    return ledger


async def owner_of(request: Request) -> str:
    """Whose what a request makes is: jobs, downloads."""
    return ledger_of(request.scope).caller.name


async def operator_of(request: Request) -> Caller:
    """The operator whose request a route has.

    Where no key of operators is set, whoever sits at the machine is one: a direct connection from a loopback
    address, not one that a proxy passes on, nor one that a web page of elsewhere has a browser make.

    Raises:
        KeyNotAllowed: it is no operator's.
    """
    doorkeeper: Doorkeeper = request.app.state.gateway.doorkeeper
    caller = ledger_of(request.scope).caller
    if caller.is_admin or (not doorkeeper.admin_keys.is_set and is_local(request)):
        return caller
    measures_of_process().refused.labels(KeyNotAllowed.reason).inc()
    if doorkeeper.admin_keys.is_set:
        raise KeyNotAllowed("this needs a key of ADMIN_API_KEYS")
    raise KeyNotAllowed("no ADMIN_API_KEYS are set, so this is only for who sits at the machine")


Operator = Depends(operator_of)


def is_local(request: Request) -> bool:
    """Whether a request was made on this machine, by nobody else's doing."""
    headers = request.headers
    host = request.client.host if request.client is not None else ""
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
    if not is_loopback or _is_passed_on(request):
        return False
    # A page of elsewhere: by its own origin, or by a name of its own that it has resolve to this machine
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return False
    hosts = headers.getlist("host")
    if len(hosts) != 1:
        return False
    named = hosts[0].lower()
    name = named.rpartition(":")[0] if named.rpartition(":")[2].isdecimal() else named
    origin = headers.get("origin")
    return name in _LOCAL_NAMES and (origin is None or origin.lower() == f"http://{named}")


def _is_passed_on(request: Request) -> bool:
    """Whether a proxy has made the request for somebody else: it says so, or speaks HTTP/1.0, as nginx does where
    nobody has told it anything."""
    names = set(request.headers.keys())
    is_told = bool(names & _FORWARDED) or any(name.startswith(_FORWARDED_FAMILIES) for name in names)
    return is_told or request.scope["http_version"] == "1.0"
