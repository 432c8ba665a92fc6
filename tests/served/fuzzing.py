"""What Schemathesis is told of this API that no OpenAPI document can say. tests/served/fuzz.toml loads it."""

from __future__ import annotations

import itertools
import os
import re
import string
from typing import Any

import schemathesis
from schemathesis import Case, CheckContext, HookContext, Response
from schemathesis.core.failures import AcceptedNegativeData, Failure, ServerError
from schemathesis.core.parameters import ParameterLocation
from schemathesis.openapi.checks import RejectedPositiveData

_numbers = itertools.count()
PATIENCE_S = "60"
SUBMIT = "/embeddings/jobs/submit"
KEYS = os.environ["FUZZ_KEYS"].split(",")  # as they stand in a header
KNOWN = {name: os.environ[f"FUZZ_{name.upper()}"] for name in ("request_id", "job_id")}

# What a request that fits the document may be refused for all the same: no schema can say it
INTEGER = r".*Input should be a valid (integer|string)$"  # 5.0, which JSON Schema calls an integer
NAME = r"sequence \d+.*: the id (.* )?is not (1 to )?256 printable characters"  # by Unicode's categories
EMPTY = r"(sequence \d+ .*: the sequence is|text \d+: it is|query: it is) empty"  # white space is what Python says
# Two fields that do not go together
COUNT = r"\d+ ids for \d+ sequences"
TOO_LONG = r"sequence \d+ .*: \d+ residues; the most is \d+"  # with `max_length`
WINDOW = r"max_length: \d+; windows have 256 residues at least"  # with `on_too_long`
FORMAT = r"(parquet is for pooled embeddings only|sequence \d+: the id .* cannot be kept in h5)"
# It depends on the model: what it reads, how much of it, and what it has
LETTER = r"sequence \d+ .*: .+ at position \d+ is "
TOKENS = r"text \d+: (\d+ tokens are more than the limit|a text has \d+ tokens at least|token id \d+ is not below)"
RESIDUE_IDS = r"sequence \d+: token id \d+ at place \d+ is no residue"
OF_THE_MODEL = r"(dimensions: \w+ has \d+|prompt_name: |normalize: \w+ normalises by itself)"
INPUTS = (INTEGER, EMPTY, LETTER, TOKENS, RESIDUE_IDS, OF_THE_MODEL)
# By the route's path. Any other refusal of what fits is a failure
UNSAID: dict[str, tuple[str, ...]] = {
    "/embeddings/compute/{model}": (
        *(INTEGER, NAME, COUNT, TOO_LONG, WINDOW),
        r"query\.\w+: a JSON body says this inside",  # a query belongs to all bodies of a route, or to none
        LETTER,  # of a header of FASTA, which ends where Python says that a line does
    ),
    SUBMIT: (
        *(INTEGER, NAME, COUNT, TOO_LONG, WINDOW, FORMAT),
        *(EMPTY, LETTER),  # a sequence that is wrong is left out, so a schema takes it; here, all were
        r"sequences \d+ and \d+ have the same id",
        r"Idempotency-Key: not 1 to 255 printable characters",
        r"(the body is no text|the text is not UTF-8|broken gzip|no FASTA header|FASTA line \d+)",  # of a file
    ),
    "/predict": INPUTS,
    "/embed": INPUTS,
    "/rerank": INPUTS,
    "/v1/embeddings": INPUTS,
}

FASTA = ("text/x-fasta", "application/x-fasta", "text/plain")
schemathesis.serializer.alias("application/x-fasta", "text/plain")
schemathesis.serializer.alias(["application/gzip", "application/x-gzip"], "application/octet-stream")


@schemathesis.hook
def map_case(context: HookContext, case: Case[Any]) -> Case[Any]:
    """Cases that get further in than what is drawn at random; some stay as they were drawn."""
    number, meta = next(_numbers), case.meta
    assert meta is not None
    negative = {location for location in ParameterLocation if meta.is_negative_at(location)}
    if number % 2 and ParameterLocation.PATH not in negative:
        for name in case.path_parameters.keys() & KNOWN.keys():
            case.path_parameters[name] = KNOWN[name]
    if number % 8 and ParameterLocation.QUERY not in negative and case.media_type == "application/json":
        case.query.clear()  # which has the options of bodies that are no JSON
    if number % 2 and ParameterLocation.BODY not in negative and case.media_type in FASTA:
        assert isinstance(case.body, str)
        case.body = "".join(letter for letter in case.body if letter.isprintable() or letter in string.whitespace)
    if ParameterLocation.HEADER not in negative:
        if "Idempotency-Key" in case.headers:  # one that is known gets the job that it had, whatever else comes
            case.headers["Idempotency-Key"] = f"{number} {case.headers['Idempotency-Key']}"[:255]
        if number % 8 and "X-Request-Timeout" in case.headers:
            case.headers["X-Request-Timeout"] = PATIENCE_S
    return case


@schemathesis.hook
def filter_failure(context: HookContext, failure: Failure, case: Case[Any], response: Response) -> bool:
    """Whether it is one."""
    if isinstance(failure, AcceptedNegativeData):
        # What is wrong with a FASTA text is wrong with one of its sequences, and a job leaves that out
        of_body = case.meta is not None and case.meta.is_negative_at(ParameterLocation.BODY)
        return not (of_body and case.path == SUBMIT and case.media_type in FASTA)
    if isinstance(failure, RejectedPositiveData):
        return not _is_unsaid(case, response)
    if isinstance(failure, ServerError) and response.status_code == 504:
        return float(case.headers.get("X-Request-Timeout", "inf")) >= float(PATIENCE_S)  # else as asked for
    return True


def _is_unsaid(case: Case[Any], response: Response) -> bool:
    if "Range" in case.headers and response.status_code in (400, 416):
        return True  # of a file whose size nobody knows before
    body = response.json()
    detail = body["error"]["message"] if isinstance(body["error"], dict) else body["detail"]
    return any(re.match(pattern, detail, re.DOTALL) for pattern in UNSAID.get(case.path, ()))


@schemathesis.check
def no_reply_without_a_key(context: CheckContext, response: Response, case: Case[Any]) -> None:
    """401 for whoever brings none that is known, before anything else is looked at."""
    headers = response.request.headers
    if headers.get("Authorization") in KEYS or headers.get("X-API-Key") in KEYS:
        return
    security = case.operation.definition.raw["security"]
    assert ({} in security) or response.status_code == 401, f"{response.status_code} without a key"
