"""An error as the reply that a client gets."""

from __future__ import annotations

import math

from starlette.responses import JSONResponse

from serving.errors import ServiceError, body_of, status_of


def reply_to(error: Exception) -> JSONResponse:
    """The reply that tells a client of an error; with `Retry-After` where trying again makes sense."""
    headers = {}
    if isinstance(error, ServiceError) and error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    return JSONResponse(body_of(error), status_of(error), headers)
