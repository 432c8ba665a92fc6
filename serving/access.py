"""Around every request: its id and trace, what it cost, what is counted and logged of it, headers of safety."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Mapping

from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.auth import DOCS, DOCS_FILES, METRICS, PROBES, ledger_of
from serving.ledger import Ledger
from serving.measures import measures_of_process
from serving.telemetry import REQUEST_ID

logger = logging.getLogger(__name__)
_tracer = trace.get_tracer("protein_embedding_service")

QUIET = PROBES | METRICS  # asked so often that they are logged only when something is wrong
_REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_OTHER = "other"  # label of paths and methods that no route has: clients make up as many as they like

# OWASP's list for APIs (REST Security Cheat Sheet, Security Headers). The documentation pages run scripts
_SAFETY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
_NO_CONTENT = "default-src 'none'; frame-ancestors 'none'"
_DOCS_CONTENT = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
)


class Access:
    """ASGI middleware, the outermost of ours.

    Args:
        named: paths that are routes of BentoML's own, each a label of its own in the metrics.
    """

    def __init__(self, app: ASGIApp, named: frozenset[str]) -> None:
        self._app = app
        self._named = named | PROBES | METRICS | DOCS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, ledger, started = Headers(scope=scope), ledger_of(scope), time.perf_counter()
        asked = headers.get("x-request-id", "")
        ledger.request_id = asked if _REQUEST_ID.fullmatch(asked) else secrets.token_hex(8)
        token = REQUEST_ID.set(ledger.request_id)
        status, measures = 500, measures_of_process()
        method = scope["method"] if scope["method"] in _METHODS else _OTHER

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    *_raw(self._headers(scope["path"], message["headers"], ledger, started)),
                ]
            await send(message)

        measures.in_progress.inc()
        try:
            with _tracer.start_as_current_span(
                method, context=propagate.extract(dict(headers)), kind=SpanKind.SERVER
            ) as span:
                try:
                    await self._app(scope, receive, note)
                finally:
                    route = self._route_of(scope)
                    span.update_name(f"{method} {route}")
                    if span.is_recording():
                        span.set_attributes(_attributes(method, route, status, ledger))
                        if status >= 500:
                            span.set_status(Status(StatusCode.ERROR))
                    seconds = time.perf_counter() - started
                    measures.requests.labels(route, method, str(status)).inc()
                    measures.request_s.labels(route, method).observe(seconds)
                    if ledger.kind:
                        measures.note_inference(ledger.kind, ledger, seconds, status)
                    if scope["path"] not in QUIET or status >= 400:
                        _log(method, route, status, seconds, ledger)
        finally:
            measures.in_progress.dec()
            REQUEST_ID.reset(token)

    def _route_of(self, scope: Scope) -> str:
        """The template of the route that answered."""
        if template := template_of(scope):
            return template
        if scope["path"].startswith(DOCS_FILES):
            return DOCS_FILES
        return scope["path"] if scope["path"] in self._named else _OTHER

    @staticmethod
    def _headers(path: str, there: list[tuple[bytes, bytes]], ledger: Ledger, started: float) -> dict[str, str]:
        is_docs = path in DOCS or path.startswith(DOCS_FILES)
        added = {
            **_SAFETY,
            "content-security-policy": _DOCS_CONTENT if is_docs else _NO_CONTENT,
            "x-request-id": ledger.request_id,
            **ledger.cost_headers(time.perf_counter() - started),
            **ledger.headers,
        }
        if not is_docs and b"cache-control" not in {name.lower() for name, _ in there}:
            added["cache-control"] = "no-store"
        return added


def template_of(scope: Scope) -> str:
    """Of the route that a request came to, `/embeddings/jobs/{job_id}` say; "" where it came to none.

    Logs and measures have this for a path: ids of downloads and jobs are as good as keys to them.
    """
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else ""


def _log(method: str, route: str, status: int, seconds: float, ledger: Ledger) -> None:
    """One line a request, without its path and query."""
    facts = {
        "method": method,
        "route": route,
        "status": status,
        "duration_ms": round(seconds * 1e3, 2),
        "caller": ledger.caller.name,
    }
    if ledger.cache:
        facts |= {
            "model": ledger.model,
            "sequences": ledger.num_hits + ledger.num_misses,
            "cache": ledger.cache,
            "tokens": ledger.num_tokens,
        }
    logger.info(
        "%s %s %d in %.1f ms, %s",
        *(facts[n] for n in ("method", "route", "status", "duration_ms", "caller")),
        extra=facts,
    )


def _attributes(method: str, route: str, status: int, ledger: Ledger) -> dict[str, str | int]:
    """By OpenTelemetry's semantic conventions for HTTP servers; ours begin with pes."""
    found: dict[str, str | int] = {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": status,
        "pes.caller": ledger.caller.name,
        "pes.request_id": ledger.request_id,
    }
    if ledger.cache:
        found |= {
            "pes.model": ledger.model,
            "pes.cache.hits": ledger.num_hits,
            "pes.cache.misses": ledger.num_misses,
            "pes.tokens": ledger.num_tokens,
        }
    return found


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
