"""An error as the reply that a client gets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from serving.errors import ServiceError, body_of, status_of

OPENAI = "/v1/"  # whose clients expect errors in another shape below this


def reply_to(error: Exception, path: str = "") -> JSONResponse:
    """The reply that tells a client of an error; with `Retry-After` where trying again makes sense."""
    headers = {}
    if isinstance(error, ServiceError) and error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    return reply_with(body_of(error), status_of(error), headers, path)


def reply_with(body: dict[str, Any], status: int, headers: Mapping[str, str], path: str) -> JSONResponse:
    """An error's body in the shape that clients of the path know."""
    return JSONResponse(_as_openai(body, status) if path.startswith(OPENAI) else body, status, dict(headers))


def _as_openai(body: dict[str, Any], status: int) -> dict[str, Any]:
    """Source: OpenAI's API reference, error codes; its client reads `message`, `type`, `param` and `code`."""
    kinds = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
    }
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    code = "model_not_found" if "known_models" in body else None
    further = {name: value for name, value in body.items() if name == "items"}
    return {"error": {"message": body["detail"], "type": kind, "param": None, "code": code, **further}}
