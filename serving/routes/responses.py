"""What routes can answer beside their results, for the OpenAPI document: errors, and headers of replies."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from serving.dialects import OpenAIErrorBody
from serving.schemas import ErrorBody, UnknownModelBody

Responses = dict[int | str, dict[str, Any]]

ERRORS: Responses = {
    400: {"model": ErrorBody, "description": "malformed JSON or FASTA"},
    404: {"model": UnknownModelBody, "description": "unknown model, with the names that come near"},
    413: {"model": ErrorBody, "description": "too many sequences or texts, or too large a body"},
    422: {"model": ErrorBody, "description": "a sequence, text or option is wrong; each is named"},
    429: {"model": ErrorBody, "description": "too much is waiting; `Retry-After` says when to try again"},
    500: {"model": ErrorBody, "description": "the model failed; the server's log says how"},
    503: {"model": ErrorBody, "description": "the model's runner does not answer, or could not load it"},
    504: {"model": ErrorBody, "description": "it took longer than the request's or the service's time limit"},
}

FORBIDDEN: Responses = {403: {"model": ErrorBody, "description": "not an operator"}}
# Of every route, by serving/auth.py
REFUSED: Responses = {
    401: {"model": ErrorBody, "description": "no key, or one that nobody has"},
    429: {
        "model": ErrorBody,
        "description": "more than this key may ask for; `Retry-After` says when to try again",
    },
}
# Of every route with a body, by serving/admission.py
NOT_LET_IN: Responses = {
    413: {"model": ErrorBody, "description": "the body is too large"},
    429: {"model": ErrorBody, "description": "too many requests, of this key or at the same time"},
    503: {"model": ErrorBody, "description": "the service is told to end"},
}

_MILLISECONDS = {"type": "number", "minimum": 0}
_LIMITED = '"(requests|tokens)"'
# Of replies; the document names each once
HEADERS: dict[str, dict[str, Any]] = {
    # Of every reply, by serving/access.py
    "x-request-id": {
        "required": True,
        "description": "name of this request in logs and traces; the client's own, where it sent one",
        "schema": {"type": "string", "pattern": r"^[\w.:-]{1,64}$"},
    },
    # Where there are limits, by serving/rates.py; as draft-ietf-httpapi-ratelimit-headers has them
    "RateLimit-Policy": {
        "description": "where there are limits: how much a key may have (q) in so many seconds (w)",
        "schema": {"type": "string", "pattern": rf"^{_LIMITED};q=\d+;w=\d+(, {_LIMITED};q=\d+;w=\d+)*$"},
    },
    "RateLimit": {
        "description": "where there are limits: how much is left (r), and in how many seconds there is more (t)",
        "schema": {"type": "string", "pattern": rf"^{_LIMITED};r=\d+;t=\d+(, {_LIMITED};r=\d+;t=\d+)*$"},
    },
    # Of a model's replies, by serving/ledger.py
    "x-total-time": {
        "required": True,
        "description": "milliseconds from the request to the reply",
        "schema": _MILLISECONDS,
    },
    "x-queue-time": {
        "required": True,
        "description": "milliseconds for which a computed sequence waited for a device, on average",
        "schema": _MILLISECONDS,
    },
    "x-inference-time": {
        "required": True,
        "description": "milliseconds for which a computed sequence was on a device, on average",
        "schema": _MILLISECONDS,
    },
    "x-compute-tokens": {
        "required": True,
        "description": "tokens that were computed, special ones included",
        "schema": {"type": "integer", "minimum": 0},
    },
    "x-cache": {
        "required": True,
        "description": "whether the cache had all sequences, none, or some",
        "schema": {"type": "string", "enum": ["hit", "miss", "partial"]},
    },
}


def named(*names: str) -> dict[str, Any]:
    """Some of these headers, for a response."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


COSTS = named("x-total-time", "x-queue-time", "x-inference-time", "x-compute-tokens", "x-cache")
RETRY_AFTER = {"description": "in how many seconds to try again", "schema": {"type": "integer", "minimum": 1}}

# Of a file that can be fetched in parts
_RANGE = r"(\d+-\d*|-\d+)"
RANGE = {
    "name": "Range",
    "in": "header",
    "description": "parts of the file, `bytes=1000-` for what is behind its first thousand bytes",
    "schema": {"type": "string", "pattern": rf"^bytes={_RANGE}(, ?{_RANGE})*$"},
}


def in_parts(*media_types: str) -> Responses:
    """Of a file that `Range` asks for: one part has its media type, several are put together."""
    content: dict[str, Any] = {media_type: {} for media_type in (*media_types, "multipart/byteranges")}
    return {
        206: {"content": content, "description": "the part that was asked for, or several"},
        400: {"model": ErrorBody, "description": "`Range` cannot be read"},
        416: {"model": ErrorBody, "description": "the file is shorter than `Range` says"},
    }


def shown(example: Any) -> Responses:
    """A reply as the documentation pages show it, where its type alone has no example."""
    return {200: {"content": {"application/json": {"example": example}}}}


def computed(example: Any) -> Responses:
    """The same of a model's reply, which says what it cost."""
    return {200: {**shown(example)[200], "headers": COSTS}}


def as_openai(responses: Responses) -> Responses:
    """Errors in the shape that they have below /v1."""
    return {status: {**response, "model": OpenAIErrorBody} for status, response in responses.items()}


def written(reply: BaseModel) -> Response:
    """A reply as JSON: one of our own making, full of numbers, is not checked once more on its way out."""
    return Response(reply.model_dump_json(), media_type="application/json")
