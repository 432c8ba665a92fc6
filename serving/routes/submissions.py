"""What is submitted as a job: as the documentation describes it, and as it arrives."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, BinaryIO, Literal

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from serving.errors import InvalidRequest, MalformedBody, UnsupportedBody
from serving.examples import UBIQUITIN
from serving.gateway import Gateway
from serving.jobs.schemas import JobOptions, JobQuery
from serving.jobs.service import reaching_files
from serving.routes.embeddings import FASTA_BODY, FASTA_MEDIA_TYPES
from serving.runners import ServedModel
from serving.sequences import MAX_ID_LENGTH
from serving.threads import run_to_its_end

Kind = Literal["fasta", "json"]

_SPOOL_BYTES = 1_000_000  # of a body that are written at a time
_GZIP_MEDIA_TYPES = ("application/gzip", "application/x-gzip")
_FILE = {"type": "string", "format": "binary"}
_ID = {"type": "string", "minLength": 1, "maxLength": MAX_ID_LENGTH}
_LISTED = {"type": "array", "minItems": 1, "items": {"type": "string"}}
_IDS = {"anyOf": [{"type": "array", "items": _ID, "uniqueItems": True}, {"type": "null"}]}
_NAMED = {
    "type": "object",
    "minProperties": 1,
    "propertyNames": _ID,
    "additionalProperties": {"type": "string"},
}
_OPTIONS: dict[str, Any] = JobQuery.model_json_schema()["properties"]


def _body(needed: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": [needed], "properties": properties, "additionalProperties": False}


def _as_text(option: dict[str, Any]) -> dict[str, Any]:
    """An option in a form, where there is no null."""
    kinds = [kind for kind in option.get("anyOf", []) if kind != {"type": "null"}]
    return {name: value for name, value in option.items() if name != "anyOf"} | (kinds[0] if kinds else {})


BODIES = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "anyOf": [
                    _body("sequences", sequences=_LISTED, ids=_IDS, **_OPTIONS),
                    _body("sequences", sequences=_NAMED, ids={"type": "null"}, **_OPTIONS),
                ]
            },
            "example": {"sequences": {"P0CG48": UBIQUITIN}, "model": "esm2_mini", "format": "h5"},
        },
        **dict.fromkeys(FASTA_MEDIA_TYPES, FASTA_BODY),
        **{media_type: {"schema": _FILE} for media_type in _GZIP_MEDIA_TYPES},
        "multipart/form-data": {
            "schema": _body("file", file=_FILE, **{name: _as_text(one) for name, one in _OPTIONS.items()})
        },
    },
}
KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "submitting again with the same key gives the same job",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}


async def receive(request: Request, folder: Path) -> tuple[BinaryIO, Kind, dict[str, Any]]:
    """The body in a file of its own in this folder, what it is, and the fields of a form.

    A form's file is in the system's folder for temporary files.

    Raises:
        UnsupportedBody, InvalidRequest, MalformedBody: it is of no known kind, has no file, or is no form.
        StoreUnavailable: the file cannot be written.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        try:
            with reaching_files():
                form = await request.form(max_files=1, max_fields=20)
        except MultiPartException as error:
            raise MalformedBody(f"the form cannot be read ({error.message})") from None
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if not files:
            raise InvalidRequest("the form has no file")
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        return files[0].file, "fasta", fields
    if media_type == "application/json":
        kind: Kind = "json"
    elif media_type in (*FASTA_MEDIA_TYPES, *_GZIP_MEDIA_TYPES):
        kind = "fasta"
    else:
        raise UnsupportedBody(
            f"{media_type or 'no media type'}; send application/json, text/x-fasta or a form with a file"
        )
    with reaching_files():
        file: BinaryIO = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # the caller closes it
    try:
        held = bytearray()
        async for chunk in request.stream():
            held += chunk
            if len(held) >= _SPOOL_BYTES:
                block, held = held, bytearray()
                with reaching_files():
                    await run_to_its_end(lambda block=block: file.write(block))  # type: ignore[misc]
        with reaching_files():
            await run_to_its_end(lambda: file.write(held))
    except BaseException:
        file.close()
        raise
    return file, kind, {}


def choose(
    gateway: Gateway, query: JobQuery, fields: dict[str, Any], inside: dict[str, Any]
) -> tuple[str, ServedModel, JobOptions]:
    """The name that asks for the model, the model, the options: those of the body, else those of the query.

    Fields of a form are text, as those of the query; what is inside JSON has its type.
    """
    try:
        asked = JobQuery.model_validate(query.model_dump(exclude_unset=True) | fields)
        wanted = JobQuery.model_validate(asked.model_dump(exclude_unset=True) | inside, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"{where}: {first['msg']}") from None
    options = JobOptions(**wanted.model_dump(exclude={"model"}))
    name = wanted.model or gateway.models.default_protein
    return name, gateway.models.find(name), options
