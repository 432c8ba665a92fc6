"""Jobs: whole proteomes submitted at once, looked at, cancelled, fetched."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.responses import FileResponse, Response

from serving.auth import owner_of
from serving.errors import (
    ExpiredOutput,
    InvalidRequest,
    JobNotDone,
    MalformedBody,
    UnknownJob,
    UnsupportedBody,
)
from serving.examples import UBIQUITIN
from serving.gateway import Gateway, gateway_of
from serving.jobs.records import ENDED, Job
from serving.jobs.service import check_key, reaching_files
from serving.jobs.submission import Contents
from serving.ranges import stream_range
from serving.results import MEDIA_TYPES, file_name
from serving.routes.embeddings import FASTA_BODY, FASTA_MEDIA_TYPES
from serving.routes.responses import ERRORS, RANGE, Responses, in_parts
from serving.runners import ServedModel
from serving.schemas import (
    ErrorBody,
    JobError,
    JobList,
    JobOptions,
    JobProgress,
    JobQuery,
    JobStatus,
    JobSubmitted,
)
from serving.sequences import MAX_ID_LENGTH
from serving.threads import run_to_its_end
from serving.uploads import Upload

router = APIRouter(prefix="/embeddings/jobs", tags=["jobs"])

Owner = Annotated[str, Depends(owner_of)]
Kind = Literal["fasta", "json"]

MAX_LISTED_ERRORS = 100
MAX_START = 1_000_000_000  # behind all jobs there can be; Redis counts in 64 bits
EVENT_EVERY_S = 0.5
EVENTS_FOR_S = 300.0  # then the stream ends, and an EventSource connects again
_SPOOL_BYTES = 1_000_000  # of a body that are written at a time
_GONE: Responses = {
    404: {"model": ErrorBody, "description": "no such job"},
    503: {"model": ErrorBody, "description": "Redis does not answer"},
}
_SUBMIT_ERRORS: Responses = {
    400: {"model": ErrorBody, "description": "malformed FASTA, JSON or gzip"},
    404: ERRORS[404],
    413: {"model": ErrorBody, "description": "too many sequences, or too large a body"},
    415: {"model": ErrorBody, "description": "neither JSON, FASTA nor a form with a file"},
    422: {"model": ErrorBody, "description": "an option or an id is wrong, or no sequence can be embedded"},
    429: {"model": ErrorBody, "description": "too many jobs or sequences of yours are queued"},
    503: {"model": ErrorBody, "description": "Redis, or the place of the results, does not answer"},
}
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


_BODIES = {
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
_ADDRESS = {"Location": {"required": True, "description": "the job's path", "schema": {"type": "string"}}}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "submitting again with the same key gives the same job",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}


@router.post(
    "/submit",
    status_code=202,
    response_model=JobSubmitted,
    responses={202: {"headers": _ADDRESS}, **_SUBMIT_ERRORS},
    openapi_extra={"requestBody": _BODIES, "parameters": [_KEY]},
)
async def submit(
    request: Request,
    gateway: Annotated[Gateway, Depends(gateway_of)],
    owner: Owner,
    query: Annotated[JobQuery, Query(description="options; a JSON body or a form may name them inside")],
) -> Response:
    """Puts sequences into the queue: JSON, FASTA text, or a form with a FASTA file; gzip is taken too.

    A sequence that cannot be embedded is reported, and does not stop the others.
    """
    key = check_key(request.headers.get("idempotency-key"))
    if key and (known := await gateway.jobs.queue.find_key(owner, key)):
        return await _accepted(gateway, known, Contents())
    file, kind, fields = await _receive(request, gateway)
    with file:
        upload = Upload(file, kind, int(gateway.settings.max_job_mb * 1e6))
        inside = await run_to_its_end(upload.options)
        name, served, options = _choose(gateway, query, fields, inside)
        limits = gateway.limits(options, gateway.settings.max_sequences_per_job)
        options = options.model_copy(update={"max_length": limits.max_length})  # as it is here and now
        job_id, contents = await gateway.jobs.submit(upload, name, served, options, limits, owner, key)
    return await _accepted(gateway, job_id, contents)


@router.get(
    "",
    response_model=JobList,
    responses={422: {"model": ErrorBody, "description": "`start` or `count` is wrong"}, 503: _GONE[503]},
)
async def list_jobs(
    gateway: Annotated[Gateway, Depends(gateway_of)],
    owner: Owner,
    start: Annotated[int, Query(ge=0, le=MAX_START)] = 0,
    count: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> JobList:
    """One's own jobs, the latest first."""
    total, jobs = await gateway.jobs.queue.list(owner, start, count)
    return JobList(total=total, jobs=[_describe(job, {}) for job in jobs])


@router.get("/{job_id}", response_model=JobStatus, responses=_GONE)
async def status(
    job_id: Annotated[str, Path()], gateway: Annotated[Gateway, Depends(gateway_of)], owner: Owner
) -> JobStatus:
    """How far a job is."""
    return await _status(gateway, await _find(gateway, job_id, owner))


@router.delete("/{job_id}", response_model=JobStatus, responses=_GONE)
async def cancel(
    job_id: Annotated[str, Path()], gateway: Annotated[Gateway, Depends(gateway_of)], owner: Owner
) -> JobStatus:
    """Cancels a job that is queued or running; one that is over stays as it is."""
    await gateway.jobs.cancel(await _find(gateway, job_id, owner))
    return await _status(gateway, await _find(gateway, job_id, owner))


async def _found(
    job_id: Annotated[str, Path()], gateway: Annotated[Gateway, Depends(gateway_of)], owner: Owner
) -> Job:
    """The job of a route; an event stream is refused before it begins."""
    return await _find(gateway, job_id, owner)


@router.get("/{job_id}/events", response_class=EventSourceResponse, responses=_GONE)
async def events(
    job: Annotated[Job, Depends(_found)], gateway: Annotated[Gateway, Depends(gateway_of)]
) -> AsyncIterator[ServerSentEvent]:
    """Progress as server-sent events, named by the job's state, each with what `GET` of the job says.

    The stream ends with the job, and after a few minutes; an EventSource then connects again.
    """
    ends_at, shown = time.monotonic() + EVENTS_FOR_S, None
    while time.monotonic() < ends_at and not gateway.is_closing.is_set():
        now = await _status(gateway, await gateway.jobs.queue.get(job.id))
        seen = now.model_dump_json(exclude={"progress": {"eta_s", "residues_per_s"}})
        if seen != shown:
            shown = seen
            yield ServerSentEvent(raw_data=now.model_dump_json(), event=now.status)
        if now.status in ENDED:
            return
        await asyncio.sleep(EVENT_EVERY_S)


@router.get(
    "/{job_id}/result",
    response_class=FileResponse,
    responses={
        **_GONE,
        **in_parts(*MEDIA_TYPES.values()),
        200: {"content": {media_type: {} for media_type in MEDIA_TYPES.values()}, "description": "the file"},
        409: {"model": ErrorBody, "description": "the job is not done"},
        410: {"model": ErrorBody, "description": "the result has expired"},
    },
    openapi_extra={"parameters": [RANGE]},
)
async def result(
    request: Request,
    job_id: Annotated[str, Path()],
    gateway: Annotated[Gateway, Depends(gateway_of)],
    owner: Owner,
) -> Response:
    """The finished file. Ranges are served, so that a download that was cut off goes on."""
    job = await _find(gateway, job_id, owner)
    if job.state != "done":
        raise JobNotDone(f"the job is {job.state}")
    if job.is_expired:
        raise ExpiredOutput(f"results are kept for {gateway.settings.job_result_ttl_hours:g} hours")
    options, store = job.order.options, gateway.jobs.store
    name, media_type = file_name(options.format, options.pooled), MEDIA_TYPES[options.format]
    if (path := store.local_path(job.id, job.result)) is not None:
        if not await run_to_its_end(path.exists):
            raise ExpiredOutput("the file of this result is gone")
        return FileResponse(path, media_type=media_type, filename=name)
    with reaching_files():
        try:
            file = await run_to_its_end(lambda: store.open(job.id, job.result))
        except FileNotFoundError:
            raise ExpiredOutput("the file of this result is gone") from None
    return stream_range(
        file, job.result_bytes, request.headers, etag=job.result, media_type=media_type, filename=name
    )


async def _receive(request: Request, gateway: Gateway) -> tuple[BinaryIO, Kind, dict[str, Any]]:
    """The body in a file of its own, what it is, and the fields of a form."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        try:
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
        file: BinaryIO = tempfile.TemporaryFile(dir=gateway.settings.data_dir)  # noqa: SIM115  # the caller closes it
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


def _choose(
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
    name = wanted.model or gateway.default_model
    return name, gateway.find(name), options


async def _accepted(gateway: Gateway, job_id: str, contents: Contents) -> Response:
    """202 with the job as it is now, which may have been there before; what was found invalid is named."""
    job = await gateway.jobs.queue.get(job_id)
    reply = JobSubmitted(
        job_id=job_id,
        status=job.state,
        status_link=f"/embeddings/jobs/{job_id}",
        num_sequences=job.order.num_sequences,
        num_residues=job.order.num_residues,
        num_invalid=contents.num_invalid,
        num_truncated=contents.num_truncated,
        invalid=[JobError(index=p.index, id=p.id, reason=p.reason) for p in contents.problems],
    )
    headers = {"Location": reply.status_link}
    return Response(reply.model_dump_json(), 202, headers, media_type="application/json")


async def _find(gateway: Gateway, job_id: str, owner: str) -> Job:
    job = await gateway.jobs.queue.get(job_id)
    if job.order.owner != owner:
        raise UnknownJob("no such job")
    return job


async def _status(gateway: Gateway, job: Job) -> JobStatus:
    errors = await gateway.jobs.queue.errors(job.id, MAX_LISTED_ERRORS) if job.progress.num_failed else {}
    return _describe(job, errors)


def _describe(job: Job, errors: dict[int, str]) -> JobStatus:
    order, progress, now = job.order, job.progress, time.time()
    has_result = job.state == "done" and not job.is_expired
    return JobStatus(
        job_id=job.id,
        status=job.state,
        model=order.model,
        tag=order.tag,
        options=order.options,
        submitted_at=datetime.fromtimestamp(job.submitted_at, UTC),
        started_at=None if job.started_at is None else datetime.fromtimestamp(job.started_at, UTC),
        ended_at=None if job.ended_at is None else datetime.fromtimestamp(job.ended_at, UTC),
        progress=JobProgress(
            sequences=job.num_done,
            total_sequences=order.num_sequences,
            residues=job.num_residues_done,
            total_residues=order.num_residues,
            cached_share=progress.num_cached / progress.next if progress.next else 0.0,
            failed=progress.num_failed,
            residues_per_s=job.residues_per_s(now),
            eta_s=job.eta_s(now),
        ),
        errors=[JobError(index=index, reason=reason) for index, reason in errors.items()],
        reason=job.reason or None,
        download_link=f"/embeddings/jobs/{job.id}/result" if has_result else None,
        size_bytes=job.result_bytes if has_result else None,
        is_expired=job.is_expired,
    )
