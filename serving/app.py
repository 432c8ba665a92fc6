"""The REST application: routes, documentation pages, and the one place where errors become replies."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.catalogue import UnknownModel
from serving.access import template_of
from serving.auth import DOCUMENTED
from serving.document import complete
from serving.errors import ServiceError, status_of
from serving.replies import reply_to, reply_with
from serving.routes import cache, embed, embeddings, jobs, models, openai, operations, overview, predict
from serving.routes.responses import REFUSED
from serving.settings import TITLE, VERSION, Role
from serving.upkeep import running

logger = logging.getLogger(__name__)

_ASKED = (embeddings, jobs, cache, models, predict, embed, openai)
_OPERATED = (operations, overview)


def create_app(role: Role = "all") -> FastAPI:
    """The application; `app.state.gateway` is set before it serves. The documentation pages need no internet.

    role: of this process; one that works on jobs alone is asked how it is, and nothing else.
    """
    app: FastAPI = FastAPIOffline(
        title=TITLE,
        version=VERSION,
        description="Protein sequences in, embeddings of protein language models out.",
        lifespan=_lifespan,
        # serving/access.py and serving/telemetry.py tell of requests, in all processes alike
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    for family in (*(_ASKED if role != "worker" else ()), *_OPERATED):
        app.include_router(family.router, dependencies=DOCUMENTED, responses=REFUSED)
    complete(app)
    app.add_exception_handler(ServiceError, _explain)
    app.add_exception_handler(UnknownModel, _explain)
    app.add_exception_handler(RequestValidationError, _explain_validation)
    app.add_exception_handler(HTTPException, _explain_http)
    app.add_exception_handler(Exception, _explain_unexpected)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with running(app.state.gateway):
        yield


def _methods_by_path() -> dict[str, set[str]]:
    """Of routes that share a path, each knows its own methods alone."""
    found: dict[str, set[str]] = {}
    for family in (*_ASKED, *_OPERATED):
        for route in family.router.routes:
            assert isinstance(route, APIRoute)
            found.setdefault(route.path, set()).update(route.methods or ())
    return found


_METHODS = _methods_by_path()


class ExplainPlainErrors:
    """ASGI middleware: what BentoML's own routing refuses in plain text gets the body of every other error."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        replaced = False

        async def explain(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and message["status"] >= 400:
                headers = Headers(raw=message["headers"])
                replaced = headers.get("content-type", "").startswith("text/plain")
                if replaced:
                    kept = {name: value for name, value in headers.items() if not name.startswith("content-")}
                    if "content-range" in headers:  # of a range that a file does not have
                        kept["content-range"] = headers["content-range"]
                    error = HTTPException(message["status"], headers=kept)
                    await (await _explain_http(Request(scope), error))(scope, receive, send)
            if not replaced:
                await send(message)

        await self._app(scope, receive, explain if scope["type"] == "http" else send)


class RefuseForms:
    """ASGI middleware: methods of BentoML's own take JSON; a form that cannot be read is a 500 to them.

    Args:
        paths: of the methods.
    """

    def __init__(self, app: ASGIApp, paths: frozenset[str]) -> None:
        self._app, self._paths = app, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in self._paths:
            media_type = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
            if media_type == "multipart/form-data":
                refusal = JSONResponse([{"error": f"{media_type} is not taken; send application/json"}], 415)
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _explain(request: Request, error: Exception) -> JSONResponse:
    status = status_of(error)
    if status >= 500:
        logger.error("%s %s: %s", request.method, template_of(request.scope), error, exc_info=error.__cause__)
    return reply_to(error, request.url.path)


async def _explain_validation(request: Request, error: Exception) -> JSONResponse:
    """A parameter of a route (not a body: those are parsed by the route) is of the wrong kind."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    detail = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return reply_with({"error": "Validation error", "detail": detail}, 422, {}, request.url.path)


async def _explain_http(request: Request, error: Exception) -> JSONResponse:
    """Starlette's own: a method that a route does not have, and the like."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    methods = _METHODS.get(getattr(request.scope.get("route"), "path", ""))
    if error.status_code == 405 and methods is not None:
        headers["Allow"] = ", ".join(sorted(methods))
    body = {"error": error.detail, "detail": f"{request.method} {request.url.path}"}
    return reply_with(body, error.status_code, headers, request.url.path)


async def _explain_unexpected(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s %s failed", request.method, template_of(request.scope), exc_info=error)
    return reply_to(error, request.url.path)
