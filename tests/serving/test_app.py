"""The application's own replies, which need no gateway behind it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from serving.app import RefuseForms, create_app


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = create_app()
    app.state.gateway = None
    client = TestClient(app)  # not entered: nothing is started
    yield client
    client.close()


@pytest.mark.parametrize("start", ["-1", "1000000001", "9223372036854775808", "1" + "0" * 40])
def test_a_start_that_no_list_has_is_refused_before_redis_is_asked(client: TestClient, start: str) -> None:
    reply = client.get("/embeddings/jobs", params={"start": start})
    assert reply.status_code == 422
    assert reply.json()["detail"].startswith("query.start")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("OPTIONS", "/embeddings/jobs/1763683200_5f0c2a9b6d1e4387a0b9c8d7e6f50413", "DELETE, GET"),
        ("PUT", "/embeddings/jobs/submit", "POST"),
        ("PUT", "/predict", "POST"),
        ("POST", "/v1/models/esm2_mini", "GET"),
        ("DELETE", "/openapi.json", "GET, HEAD"),
    ],
)
def test_a_method_that_is_not_there_is_answered_with_all_that_are(
    client: TestClient, method: str, path: str, allowed: str
) -> None:
    reply = client.request(method, path)
    assert reply.status_code == 405
    assert sorted(reply.headers["allow"].split(", ")) == allowed.split(", ")


@pytest.mark.parametrize("media_type", ["multipart/form-data", "Multipart/Form-Data ; boundary=x"])
def test_a_form_for_a_native_method_is_refused_before_it_is_read(media_type: str) -> None:
    client = TestClient(RefuseForms(PlainTextResponse("taken"), frozenset({"/encode"})))
    refused = client.post("/encode", content=b"no form", headers={"content-type": media_type})
    assert refused.status_code == 415
    assert "send application/json" in refused.json()[0]["error"]
    elsewhere = client.post("/embeddings/jobs/submit", content=b"no form", headers={"content-type": media_type})
    assert elsewhere.text == "taken"
    assert client.post("/encode", json={}).text == "taken"
