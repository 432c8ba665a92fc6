"""Jobs: whole proteomes submitted at once, looked at, cancelled, fetched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.responses import FileResponse, Response

from serving.auth import owner_of
from serving.errors import ExpiredOutput, JobNotDone
from serving.gateway import Gateway, gateway_of
from serving.jobs.records import ENDED, Job
from serving.jobs.schemas import JobError, JobList, JobProgress, JobQuery, JobStatus, JobSubmitted
from serving.jobs.service import check_key, reaching_files
from serving.jobs.submission import Contents
from serving.ranges import stream_range
from serving.results import MEDIA_TYPES, file_name
from serving.routes.responses import ERRORS, RANGE, Responses, in_parts
from serving.routes.submissions import BODIES, KEY, choose, receive
from serving.schemas import ErrorBody
from serving.threads import run_to_its_end
from serving.uploads import Upload

router = APIRouter(prefix="/embeddings/jobs", tags=["jobs"])

Owner = Annotated[str, Depends(owner_of)]

MAX_LISTED_ERRORS = 100
MAX_START = 1_000_000_000  # behind all jobs there can be; Redis counts in 64 bits
EVENT_EVERY_S = 0.5
EVENTS_FOR_S = 300.0  # then the stream ends, and an EventSource connects again
_GONE: Responses = {
    404: {"model": ErrorBody, "description": "no such job"},
    503: {"model": ErrorBody, "description": "Redis does not answer, or the job is another version's"},
}
_SUBMIT_ERRORS: Responses = {
    400: {"model": ErrorBody, "description": "malformed FASTA, JSON or gzip"},
    404: ERRORS[404],
    413: {"model": ErrorBody, "description": "too many sequences, or too large a body"},
    415: {"model": ErrorBody, "description": "neither JSON, FASTA nor a form with a file"},
    422: {"model": ErrorBody, "description": "an option or an id is wrong, or no sequence can be embedded"},
    429: {"model": ErrorBody, "description": "too many jobs or sequences of yours are queued"},
    503: {
        "model": ErrorBody,
        "description": "Redis or the place of the results does not answer, or "
        "the job of the Idempotency-Key is another version's",
    },
}
_ADDRESS = {"Location": {"required": True, "description": "the job's path", "schema": {"type": "string"}}}


@router.post(
    "/submit",
    status_code=202,
    response_model=JobSubmitted,
    responses={202: {"headers": _ADDRESS}, **_SUBMIT_ERRORS},
    openapi_extra={"requestBody": BODIES, "parameters": [KEY]},
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
    file, kind, fields = await receive(request, gateway.settings.data_dir)
    with file:
        upload = Upload(file, kind, int(gateway.settings.max_job_mb * 1e6))
        inside = await run_to_its_end(upload.options)
        name, served, options = choose(gateway, query, fields, inside)
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
    return await _status(gateway, await gateway.jobs.queue.get(job_id, owner))


@router.delete("/{job_id}", response_model=JobStatus, responses=_GONE)
async def cancel(
    job_id: Annotated[str, Path()], gateway: Annotated[Gateway, Depends(gateway_of)], owner: Owner
) -> JobStatus:
    """Cancels a job that is queued or running; one that is over stays as it is."""
    await gateway.jobs.cancel(await gateway.jobs.queue.get(job_id, owner))
    return await _status(gateway, await gateway.jobs.queue.get(job_id, owner))


async def _found(
    job_id: Annotated[str, Path()], gateway: Annotated[Gateway, Depends(gateway_of)], owner: Owner
) -> Job:
    """The job of a route; an event stream is refused before it begins."""
    return await gateway.jobs.queue.get(job_id, owner)


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
    job = await gateway.jobs.queue.get(job_id, owner)
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
