"""The OpenAPI document, of itself. tests/served/test_fuzz.py holds the running service to it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from models.catalogue import MINI
from serving.app import create_app
from serving.errors import InvalidSequences, MalformedBody, Problem, TooManySequences, body_of
from serving.routes.responses import HEADERS
from serving.schemas import ErrorBody
from serving.sequences import FASTA_PATTERN, PROTEIN_PATTERN, Limits, Record, clean_all, parse_fasta

DOCUMENT: dict[str, Any] = create_app().openapi()
OPERATIONS: dict[str, dict[str, Any]] = {
    f"{method.upper()} {path}": operation
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}
INFERENCE = (
    "POST /embeddings/compute/{model}",
    *("POST /predict", "POST /predict/batch", "POST /embed", "POST /rerank", "POST /v1/embeddings"),
)
OPEN = ("GET /health/live", "GET /health/ready", "GET /ready", "GET /metrics")
LIMITS = Limits(min_length=1, max_length=5000, max_sequences=100)


def responses() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name, operation in OPERATIONS.items():
        for status, response in operation["responses"].items():
            yield name, status, response


def test_every_reply_has_the_id_of_its_request() -> None:
    assert all("x-request-id" in response["headers"] for _, _, response in responses())


def test_every_error_is_json_in_the_shape_of_its_route() -> None:
    ours = {"ErrorBody", "UnknownModelBody"}
    for name, status, response in responses():
        if status < "400" or (status == "503" and "/health" in name) or name == "GET /ready":
            continue
        ((media_type, content),) = response["content"].items()
        assert media_type == "application/json", name
        shape = content["schema"]["$ref"].rpartition("/")[2]
        assert shape in ({"OpenAIErrorBody"} if "/v1/" in name else ours), f"{name} {status}"


def test_nothing_is_said_of_errors_that_are_never_sent() -> None:
    assert "ValidationError" not in json.dumps(DOCUMENT)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_key_is_asked_for_where_it_is_needed(name: str) -> None:
    assert "401" in OPERATIONS[name]["responses"]
    assert ({} in OPERATIONS[name]["security"]) == (name in OPEN)
    assert "WWW-Authenticate" in OPERATIONS[name]["responses"]["401"]["headers"]


@pytest.mark.parametrize("name", INFERENCE)
def test_a_models_reply_says_what_it_cost_and_its_request_how_long_it_waits(name: str) -> None:
    costs = {"x-total-time", "x-queue-time", "x-inference-time", "x-compute-tokens", "x-cache"}
    assert costs <= OPERATIONS[name]["responses"]["200"]["headers"].keys()
    assert "X-Request-Timeout" in {parameter["name"] for parameter in OPERATIONS[name]["parameters"]}


def test_who_is_to_come_back_is_told_when() -> None:
    for name, status, response in responses():
        if status == "429":
            assert response["headers"]["Retry-After"]["required"], name


def test_headers_that_are_referred_to_are_there() -> None:
    referred = set(re.findall(r"#/components/headers/([\w-]+)", json.dumps(DOCUMENT)))
    assert referred == HEADERS.keys() == DOCUMENT["components"]["headers"].keys()


def test_an_error_of_a_sequence_is_what_its_schema_says() -> None:
    body = body_of(InvalidSequences([Problem(3, "'J' at position 7 is ...", "P12345", 7, "J")]))
    shown = ErrorBody.model_validate(body, strict=True)
    assert shown.model_dump() == body


@pytest.mark.parametrize(
    "sequence",
    ["MKTAYIAKQR", "m k\tt\n", " MUZOBX*", "M*\n", "", " ", "*", "MJ", "M-K", "M*K", "M1", "ß", "M\u2003K"],
)
def test_the_pattern_of_a_protein_fits_what_is_taken(sequence: str) -> None:
    try:
        clean_all([Record("a", sequence)], MINI, LIMITS)
        is_taken = True
    except InvalidSequences:
        is_taken = False
    assert bool(re.search(PROTEIN_PATTERN, sequence)) == is_taken


@pytest.mark.parametrize(
    "text",
    [
        *(">a\nMK\n", ">a b c\r\nMK\r\nmk *\r\n\r\n>\nM", "\n >a\nMK", ">a\n\nMK*\n\n>b\nMK"),
        *("", "MK", ">a", ">a\n", ">a\n>b\nMK", ">a\nMK\n>b", ">a\nMK>b\nMK", ">a\nMJ", ">a\nM*K", ">a\n*"),
    ],
)
def test_the_pattern_of_fasta_fits_what_is_taken(text: str) -> None:
    try:
        clean_all(parse_fasta(text), MINI, LIMITS)
        is_taken = True
    except (InvalidSequences, MalformedBody, TooManySequences):
        is_taken = False
    assert bool(re.search(FASTA_PATTERN, text)) == is_taken
