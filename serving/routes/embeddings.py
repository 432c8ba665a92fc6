"""Computing embeddings and downloading them."""

from __future__ import annotations

from io import BytesIO
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import FileResponse
from pydantic import ValidationError
from starlette.background import BackgroundTask
from starlette.responses import Response

from serving.auth import owner_of
from serving.bodies import TIMEOUT, read_body
from serving.errors import (
    InvalidRequest,
    InvalidSequences,
    MalformedBody,
    Problem,
    StoreUnavailable,
    TooManySequences,
    UnsupportedBody,
)
from serving.examples import UBIQUITIN
from serving.gateway import Gateway, gateway_of, length_range
from serving.outputs import MEMORY_BYTES, NPZ_MEDIA_TYPE, describe, writing
from serving.parts import Options, expected_bytes
from serving.pipeline import Report
from serving.routes.models import summarise
from serving.routes.responses import COSTS, ERRORS, RANGE, in_parts
from serving.runners import UNTRAINED_WARNING, ServedModel
from serving.schemas import (
    CacheStats,
    ComputedWith,
    ComputeOptions,
    ComputeRequest,
    ComputeResponse,
    ErrorBody,
    SequenceResult,
    Timing,
)
from serving.sequences import FASTA_PATTERN, Protein, Record, default_id, parse_fasta
from serving.telemetry import span
from serving.threads import run_to_its_end

router = APIRouter(prefix="/embeddings", tags=["embeddings"])

FASTA_MEDIA_TYPES = ("text/x-fasta", "application/x-fasta", "text/plain")
FASTA_BODY = {
    "schema": {
        "type": "string",
        "pattern": FASTA_PATTERN,
        "description": "headers that begin with >, each before its residues; lines of comment begin with ;",
    },
    "example": f">P0CG48 ubiquitin\n{UBIQUITIN}\n",
}
_BODIES = {
    "required": True,
    "content": {
        "application/json": {"schema": ComputeRequest.model_json_schema()},
        **dict.fromkeys(FASTA_MEDIA_TYPES, FASTA_BODY),
    },
}
_ERRORS = ERRORS | {415: {"model": ErrorBody, "description": "neither JSON nor FASTA"}}


@router.post(
    "/compute/{model}",
    response_model=ComputeResponse,
    responses={
        200: {
            "content": {NPZ_MEDIA_TYPE: {}},
            "description": "a summary, or with Accept the npz itself",
            "headers": COSTS,
        },
        **_ERRORS,
    },
    openapi_extra={"requestBody": _BODIES, "parameters": [TIMEOUT]},
)
async def compute(
    request: Request,
    model: Annotated[str, Path(description="name of a served model", examples=["esm2_mini"])],
    gateway: Annotated[Gateway, Depends(gateway_of)],
    query: Annotated[ComputeOptions, Query(description="for FASTA bodies; JSON says it inside")],
) -> Response:
    """Embeds proteins.

    The body is JSON, or FASTA text (`text/x-fasta`) with the options in the query. The reply is a summary with
    a link to the npz; with `Accept: application/x-npz` it is the npz at once.
    """
    served, terms = gateway.models.find(model), gateway.terms(request)
    body = await read_body(request, terms)

    def read() -> tuple[list[Protein], Options]:
        records, wanted = _parse(body, request, query, gateway.settings.max_sequences_per_request)
        return gateway.prepare(served, records, wanted)

    proteins, options = await run_to_its_end(read, len(body))

    request_id, path = gateway.outputs.new()
    size_bytes = expected_bytes(proteins, options, served.model.dim)
    npz = BytesIO() if size_bytes <= MEMORY_BYTES else path
    async with writing(npz) as writer:
        report = await gateway.pipeline.embed(served, proteins, options, writer, terms)
        manifest = describe(served, proteins, options, report)
        with span("outputs.finish"):
            await run_to_its_end(lambda: writer.finish([protein.id for protein in proteins], manifest), size_bytes)

    if NPZ_MEDIA_TYPE in request.headers.get("accept", ""):
        name = f"embeddings_{model}_{request_id}.npz"
        if isinstance(npz, BytesIO):
            headers = {"Content-Disposition": f'attachment; filename="{name}"'}
            return Response(npz.getvalue(), media_type=NPZ_MEDIA_TYPE, headers=headers)
        delete = BackgroundTask(npz.unlink, missing_ok=True)
        # With the size known, nothing is waited for before the reply begins, behind which the file is deleted
        size = npz.stat()
        return FileResponse(npz, media_type=NPZ_MEDIA_TYPE, filename=name, background=delete, stat_result=size)
    warnings = [] if served.is_trained else [UNTRAINED_WARNING]
    link = None
    try:
        link = await gateway.outputs.publish(request_id, model, npz, terms.ledger.caller.name)
    except StoreUnavailable as error:
        warnings.append(f"{error}; send Accept: {NPZ_MEDIA_TYPE} to get the embeddings at once")
    reply = _reply(gateway, served, proteins, options, report, link, warnings)
    return Response(reply.model_dump_json(), media_type="application/json")


@router.get(
    "/download/{model}/numpy/{request_id}",
    response_class=FileResponse,
    responses={
        **in_parts(NPZ_MEDIA_TYPE),
        200: {"content": {NPZ_MEDIA_TYPE: {}}, "description": "the npz"},
        404: {"model": ErrorBody, "description": "no such download"},
        410: {"model": ErrorBody, "description": "its time is over"},
        503: {"model": ErrorBody, "description": "the folder of the downloads cannot be read"},
    },
    openapi_extra={"parameters": [RANGE]},
)
async def download(
    model: str,
    request_id: str,
    gateway: Annotated[Gateway, Depends(gateway_of)],
    owner: Annotated[str, Depends(owner_of)],
) -> FileResponse:
    """The npz of a compute request: `embedding_0`, `embedding_1`, ..., `ids`, `sequence_count`, `manifest`.

    Read it with `numpy.load(file, allow_pickle=False)`.
    """
    path = gateway.outputs.find(request_id, model, owner)
    return FileResponse(path, media_type=NPZ_MEDIA_TYPE, filename=f"embeddings_{model}_{request_id}.npz")


def _parse(
    body: bytes, request: Request, query: ComputeOptions, limit: int
) -> tuple[list[Record], ComputeOptions]:
    """The sequences and options of a body, by its media type; `limit` sequences at most."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type in FASTA_MEDIA_TYPES:
        try:
            return parse_fasta(body.decode(), limit), query
        except UnicodeDecodeError as error:
            raise MalformedBody(f"the FASTA text is not UTF-8: byte {error.start}") from None
    if media_type != "application/json":
        known = ", ".join(("application/json", *FASTA_MEDIA_TYPES))
        raise UnsupportedBody(f"{media_type!r} is none of {known}")
    if query.model_fields_set:
        raise InvalidRequest(f"query.{min(query.model_fields_set)}: a JSON body says this inside")
    parsed = _parse_json(body)
    if len(parsed.sequences) > limit:
        raise TooManySequences(len(parsed.sequences), limit)
    ids = parsed.ids
    if ids is None:
        ids = [default_id(index) for index in range(len(parsed.sequences))]
    if len(ids) != len(parsed.sequences):
        raise InvalidRequest(f"{len(ids)} ids for {len(parsed.sequences)} sequences")
    records = [Record(id, sequence) for id, sequence in zip(ids, parsed.sequences, strict=True)]
    return records, parsed


def _parse_json(body: bytes) -> ComputeRequest:
    try:
        return ComputeRequest.model_validate_json(body, strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
    if problems[0]["type"] == "json_invalid":
        raise MalformedBody(problems[0]["msg"])
    wrong_items = [
        Problem(int(problem["loc"][1]), f"not a string but {type(problem['input']).__name__}")
        for problem in problems
        if problem["loc"][:1] == ("sequences",) and len(problem["loc"]) > 1
    ]
    if wrong_items:
        raise InvalidSequences(wrong_items)
    where = ".".join(str(part) for part in problems[0]["loc"]) or "body"
    raise InvalidRequest(f"{where}: {problems[0]['msg']}")


def _reply(
    gateway: Gateway,
    served: ServedModel,
    proteins: list[Protein],
    options: Options,
    report: Report,
    link: str | None,
    warnings: list[str],
) -> ComputeResponse:
    hits, dim = sum(report.cached), served.model.dim
    summary = summarise(served, report.precision)
    return ComputeResponse(
        sequences=[protein.sequence for protein in proteins],
        results=[
            SequenceResult(
                index=index,
                id=protein.id,
                length=len(protein.sequence),
                cached=report.cached[index],
                device=report.devices.get(index),
                replaced=list(protein.replaced),
                truncated_from=protein.truncated_from,
                error=report.errors.get(index),
            )
            for index, protein in enumerate(proteins)
        ],
        cache_stats=CacheStats(
            hit_rate=round(hits / len(proteins), 4),
            total_hits=hits,
            total_requests=len(proteins),
            cache_misses=len(proteins) - hits,
        ),
        timing=Timing(
            total_ms=round(report.total_ms, 2),
            cache_ms=round(report.cache_ms, 2),
            inference_ms=round(report.inference_ms, 2),
            cache_hits=hits,
            runner_calls=report.runner_calls,
        ),
        model_info=ComputedWith(
            **summary.model_dump(),
            model=served.model.name,
            sequence_length_range=length_range(gateway.settings),
            pooled=options.pooled,
            dtype=options.dtype,
            shape_description=(
                f"[sequences, {dim}] (pooled)" if options.pooled else f"[sequences, sequence_length, {dim}] (full)"
            ),
        ),
        download_link=link,
        warnings=warnings,
    )
