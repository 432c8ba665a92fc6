"""The OpenAPI document: what FastAPI gathers from the routes, and what the layers around them add to replies."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from serving.auth import METRICS, PROBES
from serving.routes.responses import HEADERS, RETRY_AFTER, named

_OWN_ERRORS = ("HTTPValidationError", "ValidationError")  # FastAPI's, which serving/app.py never sends
_ALWAYS = named("x-request-id")
_RATES = named("RateLimit-Policy", "RateLimit")
_OF_STATUS: dict[str, dict[str, Any]] = {
    "401": {"WWW-Authenticate": {"required": True, "schema": {"type": "string", "const": "Bearer"}}},
    "429": {"Retry-After": {"required": True, **RETRY_AFTER}},
    "503": {"Retry-After": RETRY_AFTER},
}


def complete(app: FastAPI) -> None:
    """Has the application's document say what its routes do not know of."""
    gather = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = gather()
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    _complete(operation, is_open=path in PROBES | METRICS)
            components = document["components"]
            components["headers"] = HEADERS
            for name in _OWN_ERRORS:
                components["schemas"].pop(name, None)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _complete(operation: dict[str, Any], is_open: bool) -> None:
    if is_open:
        operation["security"].append({})  # no key is one of the ways
    responses = operation["responses"]
    if _OWN_ERRORS[0] in str(responses.get("422")):
        del responses["422"]  # FastAPI's for any parameter; where one can be wrong, the route says so itself
    for status, response in responses.items():
        rates = {} if is_open or status == "401" else _RATES
        response["headers"] = {**response.get("headers", {}), **_ALWAYS, **rates, **_OF_STATUS.get(status, {})}
        if status >= "400" and "content" in response:
            (content,) = response["content"].values()
            response["content"] = {"application/json": content}  # whatever the route's own replies are
