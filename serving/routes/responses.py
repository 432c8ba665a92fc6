"""What the routes of inference can answer instead of a result, for their documentation."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from serving.schemas import ErrorBody

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "malformed JSON or FASTA"},
    404: {"model": ErrorBody, "description": "unknown model, with the names that come near"},
    413: {"model": ErrorBody, "description": "too many sequences or texts, or too large a body"},
    422: {"model": ErrorBody, "description": "a sequence, text or option is wrong; each is named"},
    429: {"model": ErrorBody, "description": "too much is waiting; `Retry-After` says when to try again"},
    500: {"model": ErrorBody, "description": "the model failed; the server's log says how"},
    503: {"model": ErrorBody, "description": "the model's runner does not answer, or could not load it"},
    504: {"model": ErrorBody, "description": "it took longer than the request's or the service's time limit"},
}

FORBIDDEN: dict[int | str, dict[str, Any]] = {403: {"model": ErrorBody, "description": "not an operator"}}
# Of every route, by serving/auth.py
REFUSED: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorBody, "description": "no key, or one that nobody has"},
    429: {
        "model": ErrorBody,
        "description": "more than this key may ask for; `Retry-After` says when to try again",
    },
}


def shown(example: Any) -> dict[int | str, dict[str, Any]]:
    """A reply as the documentation pages show it, where its type alone has no example."""
    return {200: {"content": {"application/json": {"example": example}}}}


def written(reply: BaseModel) -> Response:
    """A reply as JSON: one of our own making, full of numbers, is not checked once more on its way out."""
    return Response(reply.model_dump_json(), media_type="application/json")
