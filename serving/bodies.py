"""JSON bodies of requests: read in time, told apart by their fields, checked by their types."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from serving.errors import DeadlineExceeded, InvalidRequest, MalformedBody
from serving.gateway import TIMEOUT_HEADER
from serving.runners import Terms
from serving.threads import run_to_its_end

BodyT = TypeVar("BodyT", bound=BaseModel)

TIMEOUT = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "description": "seconds after which nobody waits for the reply; the service's own limit is the most",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


async def read_body(request: Request, terms: Terms) -> bytes:
    """All of it.

    Raises:
        DeadlineExceeded: it did not come in time.
    """
    try:
        async with asyncio.timeout_at(terms.deadline):
            return await request.body()
    except TimeoutError:
        raise DeadlineExceeded("the body did not come in time") from None


async def read_json(request: Request, terms: Terms, kinds: Mapping[str, type[BodyT]]) -> BodyT:
    """A body of one of several kinds. Each is known by a field that only it has.

    Raises:
        MalformedBody: it is no JSON object.
        InvalidRequest: it is of none of the kinds, or not as its kind wants it.
        DeadlineExceeded: as `read_body`.
    """
    body = await read_body(request, terms)
    return await run_to_its_end(lambda: _parse(body, kinds), len(body))


def _parse(body: bytes, kinds: Mapping[str, type[BodyT]]) -> BodyT:
    try:
        found = from_json(body)  # which takes neither half characters nor endless depth
    except ValueError as error:
        raise MalformedBody(f"the body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise MalformedBody("the body is no JSON object")
    for name, kind in kinds.items():
        if name in found:
            return _validate(kind, found)
    raise InvalidRequest(f"the body has none of the fields {', '.join(kinds)}")


def _validate(kind: type[BodyT], found: Mapping[str, object]) -> BodyT:
    try:
        return kind.model_validate(found, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise InvalidRequest(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None


def body_schema(*kinds: type[BaseModel]) -> dict[str, Any]:
    """For the documentation of a model's route: what its body may be, and the header that all of them know."""
    schemas = [_inlined(kind.model_json_schema()) for kind in kinds]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"requestBody": body, "parameters": [TIMEOUT]}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without references, which would point nowhere from where it is put."""
    definitions = schema.pop("$defs", {})

    def resolve(part: Any) -> Any:
        if isinstance(part, list):
            return [resolve(one) for one in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return resolve(definitions[part["$ref"].rpartition("/")[2]])
        return {name: resolve(value) for name, value in part.items()}

    resolved: dict[str, Any] = resolve(schema)
    return resolved
