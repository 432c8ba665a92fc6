"""Everything that is no protein request: a clear status, the item and the reason, and the service goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.served.conftest import Served

GOOD = "MKTAYIAKQRQISFVKSHFSRQ"
COMPUTE = "/embeddings/compute/esm2_mini"


@pytest.mark.parametrize(
    ("sequences", "index", "position", "character"),
    [
        ([GOOD, "MKTAYIAKJRQIS"], 1, 9, "J"),
        ([GOOD, GOOD, "MKTAYI-AKQRQIS"], 2, 7, "-"),
        (["MKTAYI*AKQRQIS"], 0, 7, "*"),
        (["MKTAYIAKQRQIS1"], 0, 14, "1"),
        (["MKTAYIAKQRQISß"], 0, 14, "ß"),
        ([GOOD, ""], 1, None, None),
        ([GOOD, "  \n"], 1, None, None),
        ([GOOD, "MKTAY"], 1, None, None),
        ([GOOD, "M" * 5001], 1, None, None),
    ],
    ids=["J", "gap", "inner stop", "digit", "not ASCII", "empty", "white space", "too short", "too long"],
)
def test_a_wrong_sequence_is_named(
    served: Served, sequences: list[str], index: int, position: int | None, character: str | None
) -> None:
    reply = served.http.post(COMPUTE, json={"sequences": sequences})
    assert reply.status_code == 422
    body = reply.json()
    assert body["error"] == "Invalid sequence"
    assert f"sequence {index}" in body["detail"]
    (item,) = body["items"]
    assert item["index"] == index
    assert (item.get("position"), item.get("character")) == (position, character)


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({"sequences": []}, 422, "sequences"),
        ({"sequences": [GOOD] * 101}, 413, "101 sequences in one request; the limit is 100"),
        ({"sequences": [GOOD, 7]}, 422, "sequence 1: not a string but int"),
        ({"sequences": [GOOD, None, ["M"]]}, 422, "sequence 1: not a string but NoneType (and 1 more)"),
        ({"sequences": GOOD}, 422, "sequences"),
        ({}, 422, "sequences"),
        ([], 422, "body"),
        ({"sequences": [GOOD], "pooled": "maybe"}, 422, "pooled"),
        ({"sequences": [GOOD], "pooled": "true"}, 422, "pooled: Input should be a valid boolean"),
        ({"sequences": [GOOD], "max_length": "20"}, 422, "max_length: Input should be a valid integer"),
        ({"sequences": [GOOD], "dtype": "int8"}, 422, "dtype"),
        ({"sequences": [GOOD], "poled": False}, 422, "poled"),
        ({"sequences": [GOOD], "ids": ["a", "b"]}, 422, "2 ids for 1 sequences"),
        ({"sequences": [GOOD], "on_too_long": "shorten"}, 422, "on_too_long"),
        ({"sequences": [GOOD], "max_length": 0}, 422, "max_length"),
        ({"sequences": [GOOD], "max_length": 9}, 422, "max_length: 9 is not in 10-5000"),
        ({"sequences": [GOOD], "max_length": 5001, "on_too_long": "window"}, 422, "max_length: 5001"),
        ({"sequences": [GOOD], "max_length": 21}, 422, "22 residues; the most is 21"),
        ({"sequences": ["M" * 100_001], "on_too_long": "window"}, 422, "the most is 100000"),
    ],
)
def test_a_wrong_body_is_explained(served: Served, body: Any, status: int, detail: str) -> None:
    reply = served.http.post(COMPUTE, json=body)
    assert reply.status_code == status, reply.text
    assert detail in reply.json()["detail"]


@pytest.mark.parametrize(
    ("content", "media_type", "status"),
    [
        (b'{"sequences": ["MK', "application/json", 400),
        (b"", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"MKTAYIAKQRQIS", "text/x-fasta", 400),
        (b"", "text/x-fasta", 400),
        (b">a\n\xff\xfe", "text/x-fasta", 400),
        (b">a\n>b\nMKTAYIAKQRQIS", "text/x-fasta", 422),
        (b"<xml/>", "application/xml", 415),
    ],
)
def test_a_malformed_body_is_explained(served: Served, content: bytes, media_type: str, status: int) -> None:
    reply = served.http.post(COMPUTE, content=content, headers={"content-type": media_type})
    assert reply.status_code == status, reply.text
    assert set(reply.json()) >= {"error", "detail"}


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ({"pooled": "maybe"}, "query.pooled"),
        ({"poled": "false"}, "query.poled"),
        ({"max_length": "0"}, "query.max_length"),
        ({"max_length": "5001"}, "max_length: 5001 is not in 10-5000"),
        ({"on_too_long": "shorten"}, "query.on_too_long"),
    ],
)
def test_wrong_options_in_the_query_are_explained(served: Served, query: dict[str, str], detail: str) -> None:
    reply = served.http.post(
        COMPUTE, params=query, content=f">a\n{GOOD}", headers={"content-type": "text/x-fasta"}
    )
    assert reply.status_code == 422
    assert detail in reply.json()["detail"]


@pytest.mark.parametrize("query", [{"pooled": "false"}, {"max_length": "20"}, {"poled": "false"}])
def test_options_beside_a_json_body_are_refused_not_ignored(served: Served, query: dict[str, str]) -> None:
    reply = served.http.post(COMPUTE, params=query, json={"sequences": [GOOD]})
    assert reply.status_code == 422
    assert f"query.{next(iter(query))}" in reply.json()["detail"]


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", ""])
@pytest.mark.parametrize("path", [COMPUTE, "/encode"])
def test_a_time_limit_that_is_none_is_explained(served: Served, path: str, value: str) -> None:
    reply = served.http.post(path, json={"sequences": [GOOD]}, headers={"x-request-timeout": value})
    assert reply.status_code == 422
    assert "X-Request-Timeout" in reply.text


@pytest.mark.parametrize("path", ["/embeddings/compute/esm2_min", "/embeddings/compute/ESM2_MINI"])
def test_an_unknown_model_is_answered_with_near_names(served: Served, path: str) -> None:
    reply = served.http.post(path, json={"sequences": [GOOD]})
    assert reply.status_code == 404
    assert reply.json()["known_models"] == ["esm2_mini", "esm2_t6_8M"]
    if path.endswith("esm2_min"):
        assert "did you mean esm2_mini" in reply.json()["detail"]


def test_a_model_of_the_catalogue_that_is_not_served_is_unknown_here(served: Served) -> None:
    assert served.http.post("/embeddings/compute/prot_t5", json={"sequences": [GOOD]}).status_code == 404
    assert served.http.get("/embeddings/model/info", params={"model": "prot_t5"}).status_code == 404


@pytest.mark.parametrize(
    "request_id",
    [
        "1703123456_12345",
        "1703123456_" + "0" * 32,
        "..%2F..%2Fservice.log",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "*",
        "a" * 5000,
    ],
)
def test_an_unknown_or_hostile_download_is_not_found(served: Served, request_id: str) -> None:
    reply = served.http.get(f"/embeddings/download/esm2_mini/numpy/{request_id}")
    assert reply.status_code == 404
    assert set(reply.json()) == {"error", "detail"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/embeddings/compute/esm2_mini", 405),
        ("GET", "/encode", 405),
        ("DELETE", "/embeddings/models", 405),
    ],
)
def test_a_path_or_method_that_is_not_there_has_the_same_body(
    served: Served, method: str, path: str, status: int
) -> None:
    reply = served.http.request(method, path)
    assert reply.status_code == status
    assert set(reply.json()) == {"error", "detail"}


def test_a_pattern_cannot_leave_the_cache(served: Served) -> None:
    served.redis.set("pes:job:kept", 1)
    served.http.post("/embeddings/cache/clear", params={"pattern": "*:job:*"})
    served.http.post("/embeddings/cache/clear", params={"pattern": "../*"})
    assert served.redis.get("pes:job:kept") == b"1"
    served.redis.delete("pes:job:kept")


def test_pickles_are_not_read(served: Served) -> None:
    reply = served.http.post(
        "/encode", content=b"\x80\x04N.", headers={"content-type": "application/vnd.bentoml+pickle"}
    )
    assert reply.status_code == 415


def test_after_all_that_the_service_still_answers(served: Served) -> None:
    reply = served.http.post(COMPUTE, content=json.dumps({"sequences": [GOOD]}))
    assert reply.status_code == 200
