"""OpenAI's own client against the running service."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import openai
import pytest
import transformers
from sentence_transformers import SentenceTransformer

from tests.models.text.checkpoints import MINILM
from tests.served.texts import CLASSIFIER, EMBEDDER, RERANKER, TextService

TEXTS = ["The cats sat on the mat.", "machine learning", "The cats sat on the mat."]
PROTEINS = ["MKTVRQERLKSIVRILERSKEPVSGAQL", "MSGSHHHHHHSSGLVPRGSH"]


@pytest.fixture
def client(texts: TextService) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{texts.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def vectors(reply: openai.types.CreateEmbeddingResponse) -> np.ndarray:
    assert [one.index for one in reply.data] == list(range(len(reply.data)))
    return np.array([one.embedding for one in reply.data], np.float32)


def test_texts_get_the_vectors_of_sentence_transformers(client: openai.OpenAI) -> None:
    reply = client.embeddings.create(model=EMBEDDER, input=TEXTS)
    expected = SentenceTransformer(str(MINILM), device="cpu").encode(TEXTS)
    assert np.abs(vectors(reply) - expected).max() <= 1e-5
    assert reply.model == EMBEDDER
    assert reply.usage.total_tokens == reply.usage.prompt_tokens == 9 + 4 + 9


@pytest.mark.parametrize("model", ["esm2_mini", "prot_t5_mini"])
def test_proteins_get_the_vectors_of_the_compute_route(
    client: openai.OpenAI, texts: TextService, model: str
) -> None:
    found = vectors(client.embeddings.create(model=model, input=PROTEINS, encoding_format="float"))
    predicted = texts.http.post("/predict/batch", json={"sequences": PROTEINS, "model": model}).json()
    assert np.array_equal(found, np.array([one["embedding"] for one in predicted["results"]], np.float32))


@pytest.mark.parametrize(("model", "inputs"), [(EMBEDDER, TEXTS), ("esm2_mini", PROTEINS)])
def test_base64_is_the_same_as_floats(client: openai.OpenAI, model: str, inputs: list[str]) -> None:
    as_floats = vectors(client.embeddings.create(model=model, input=inputs, encoding_format="float"))
    as_base64 = vectors(client.embeddings.create(model=model, input=inputs))  # the client's default, decoded by it
    assert np.array_equal(as_floats, as_base64)


def test_token_ids_of_texts_are_those_of_the_models_tokenizer(client: openai.OpenAI) -> None:
    ids = transformers.AutoTokenizer.from_pretrained(MINILM)(TEXTS)["input_ids"]
    expected = vectors(client.embeddings.create(model=EMBEDDER, input=TEXTS))
    assert np.abs(vectors(client.embeddings.create(model=EMBEDDER, input=ids)) - expected).max() <= 1e-6
    assert np.abs(vectors(client.embeddings.create(model=EMBEDDER, input=ids[0])) - expected[:1]).max() <= 1e-6


def test_token_ids_of_proteins_are_those_of_the_models_tokenizer(client: openai.OpenAI) -> None:
    letters = "LAGVSERTIDPKQNFYMHWCXBUZO"
    ids = [[0, *(4 + letters.index(residue) for residue in protein), 2] for protein in PROTEINS]
    expected = vectors(client.embeddings.create(model="esm2_mini", input=PROTEINS))
    assert np.array_equal(vectors(client.embeddings.create(model="esm2_mini", input=ids)), expected)


def test_fewer_dimensions_are_the_first_and_of_length_one_where_all_are(client: openai.OpenAI) -> None:
    whole = vectors(client.embeddings.create(model=EMBEDDER, input=TEXTS))
    short = vectors(client.embeddings.create(model=EMBEDDER, input=TEXTS, dimensions=100))
    expected = whole[:, :100] / np.linalg.norm(whole[:, :100], axis=1, keepdims=True)
    assert np.abs(short - expected).max() <= 1e-6
    proteins = vectors(client.embeddings.create(model="esm2_mini", input=PROTEINS))
    short = vectors(client.embeddings.create(model="esm2_mini", input=PROTEINS, dimensions=10))
    assert np.array_equal(short, proteins[:, :10])


def test_everything_that_is_served_is_listed(client: openai.OpenAI) -> None:
    listed = [model.id for model in client.models.list()]
    assert {"esm2_mini", "prot_t5_mini", EMBEDDER, RERANKER, CLASSIFIER} <= set(listed)
    assert client.models.retrieve(EMBEDDER).created > 1_600_000_000


def test_errors_are_those_that_the_client_knows(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.embeddings.create(model="esm2_mino", input="MKTVRQERLK")
    assert unknown.value.code == "model_not_found"
    assert "did you mean esm2_mini?" in str(unknown.value)
    with pytest.raises(openai.UnprocessableEntityError) as wrong:
        client.embeddings.create(model="esm2_mini", input=["MKTVRQERLK", "MKTAYJAKQR"])
    assert "sequence 1 (sequence_1): 'J' at position 6" in str(wrong.value)
    assert wrong.value.type == "invalid_request_error"
    with pytest.raises(openai.UnprocessableEntityError, match="text 1: 400 tokens are more than the limit of 256"):
        client.embeddings.create(model=EMBEDDER, input=[[101], [101] * 400])
    with pytest.raises(openai.UnprocessableEntityError, match=r"dimensions: .* has 384, not 385"):
        client.embeddings.create(model=EMBEDDER, input="a", dimensions=385)
    with pytest.raises(openai.UnprocessableEntityError, match="token id 1 at place 1 is no residue"):
        client.embeddings.create(model="esm2_mini", input=[[0, 1, 2]])


def test_what_is_no_route_is_told_in_openais_shape(texts: TextService) -> None:
    for method, route, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/embeddings", 405)):
        reply = texts.http.request(method, route)
        assert reply.status_code == status
        assert reply.json()["error"]["message"] == f"{method} {route}"
