"""Texts through the running service: right values, the cache, limits, and text-embeddings-inference's bodies."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from typing import Any

import bentoml
import huggingface_hub
import numpy as np
import pytest
import transformers
from huggingface_hub import InferenceClient
from sentence_transformers import CrossEncoder, SentenceTransformer

from models.text import stored
from tests.models.text.checkpoints import MINILM
from tests.served.texts import CLASSIFIER, EMBEDDER, RERANKER, SECOND_CLASSIFIER, TextService

# Pairs of neighbours: 0 and 1 mean about the same, 2 and 3, ...
SENTENCES = [
    "A man is playing a guitar.",
    "Somebody plays a guitar.",
    "The cat sleeps on the sofa.",
    "A kitten is napping on the couch.",
    "Interest rates went up this year.",
    "The central bank has raised its rates.",
    "Insulin regulates the level of sugar in blood.",
    "Blood glucose is controlled by a hormone of the pancreas.",
    "It will rain heavily tomorrow.",
    "The forecast for tomorrow is heavy rain.",
    "The train to Berlin is late.",
    "There is a delay of the train for Berlin.",
    "She bakes bread every Sunday.",
    "On Sundays she makes her own bread.",
    "The football team won the final.",
    "The final of the cup was won by the football club.",
    "Proteins fold into their native structure.",
    "A polypeptide chain takes its three-dimensional shape.",
    "The new phone has a better camera.",
    "Photos are better on the new smartphone.",
]


def embed(service: TextService, texts: list[str], **options: Any) -> np.ndarray:
    reply = service.http.post("/embed", json={"input": texts, "model": EMBEDDER, **options})
    return np.array(reply.raise_for_status().json()["embeddings"], np.float32)


def refusal(service: TextService, route: str, body: dict[str, Any], status: int = 422) -> str:
    reply = service.http.post(route, json=body)
    assert reply.status_code == status, reply.text
    detail: str = reply.json()["detail"]
    return detail


def test_embeddings_of_a_trained_model_are_the_references_and_find_neighbours(texts: TextService) -> None:
    found = embed(texts, SENTENCES)
    expected = SentenceTransformer(str(MINILM), device="cpu").encode(SENTENCES)
    assert np.abs(found - expected).max() <= 1e-5  # Measured: 1.5e-7
    closeness = found @ found.T - 2 * np.eye(len(found))
    assert closeness.argmax(axis=1).tolist() == [index ^ 1 for index in range(len(SENTENCES))]


def test_a_text_comes_from_the_cache_the_second_time_with_its_tokens(texts: TextService) -> None:
    body = {"input": ["only asked for here", "and here too"], "model": EMBEDDER}

    def hits() -> int:
        found: int = texts.http.get("/embeddings/cache/stats").json()["stats"]["cache_hits"]
        return found

    first, before = texts.http.post("/embed", json=body).json(), hits()
    second = texts.http.post("/embed", json=body).json()
    assert second == first
    assert second["usage"]["total_tokens"] == 6 + 5
    assert hits() == before + 2


def test_many_clients_at_once_get_each_their_own(texts: TextService) -> None:
    lines = [f"sentence number {index} of many" for index in range(64)]
    expected = SentenceTransformer(str(MINILM), device="cpu").encode(lines)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = np.concatenate(list(pool.map(lambda line: embed(texts, [line]), lines)))
    assert np.abs(found - expected).max() <= 1e-5


def test_long_texts_are_refused_or_cut_as_asked(texts: TextService) -> None:
    long = "word " * 300
    detail = refusal(texts, "/embed", {"input": ["short", long], "model": EMBEDDER})
    assert detail == "text 1: 302 tokens are more than the limit of 256; ask for truncation, or cut it"
    expected = SentenceTransformer(str(MINILM), device="cpu").encode([long])
    assert np.abs(embed(texts, [long], truncate=True) - expected).max() <= 1e-5
    # What was cut is in the cache now, and still not what an uncut request gets
    refusal(texts, "/embed", {"input": [long], "model": EMBEDDER})


@pytest.mark.parametrize("model", [CLASSIFIER, SECOND_CLASSIFIER])
def test_classes_are_those_of_transformers(texts: TextService, model: str) -> None:
    folder = texts.folders[model]
    lines = SENTENCES[:5]
    classify = transformers.pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    found = texts.http.post("/predict", json={"inputs": [[line] for line in lines], "model": model}).json()
    for ours, theirs in zip(found, classify(lines), strict=True):
        assert [one["label"] for one in ours] == [one["label"] for one in theirs]
        assert [one["score"] for one in ours] == pytest.approx([one["score"] for one in theirs], abs=1e-5)


def test_ranks_are_those_of_the_cross_encoder(texts: TextService) -> None:
    documents = SENTENCES[:6]
    expected = CrossEncoder(str(texts.folders[RERANKER]), device="cpu").rank("music", documents)
    body = {"query": "music", "documents": documents, "model": RERANKER, "top_n": 3}
    found = texts.http.post("/rerank", json=body).json()["results"]
    assert [one["index"] for one in found] == [one["corpus_id"] for one in expected][:3]
    assert [one["score"] for one in found] == pytest.approx(
        [float(one["score"]) for one in expected][:3], abs=1e-5
    )


def test_rerank_as_text_embeddings_inference_has_it(texts: TextService) -> None:
    body: dict[str, Any] = {"query": "music", "texts": SENTENCES[:3]}
    found = texts.http.post("/rerank", json=body).json()
    assert [one.keys() for one in found] == [{"index", "score"}] * 3
    raw = texts.http.post("/rerank", json=body | {"raw_scores": True, "return_text": True}).json()
    assert [one["index"] for one in raw] == [one["index"] for one in found]
    assert [1 / (1 + np.exp(-one["score"])) for one in raw] == pytest.approx([one["score"] for one in found])
    assert raw[0]["text"] == SENTENCES[raw[0]["index"]]


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's client refuses every address while the hub is off."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def test_bentomls_client_gets_embeddings_of_texts(texts: TextService) -> None:
    with bentoml.SyncHTTPClient(texts.url) as client:
        found = client.encode(sequences=SENTENCES[:3], model=EMBEDDER)
    assert found.dtype == np.float32
    assert np.array_equal(found, embed(texts, SENTENCES[:3]))


def test_hugging_faces_client_gets_embeddings(texts: TextService, online: None) -> None:
    client = InferenceClient(model=f"{texts.url}/embed")
    expected = SentenceTransformer(str(MINILM), device="cpu").encode(SENTENCES[:2])
    assert np.abs(client.feature_extraction(SENTENCES[0]) - expected[:1]).max() <= 1e-5
    assert np.abs(client.feature_extraction(SENTENCES[:2], normalize=True) - expected).max() <= 1e-5
    cut = client.feature_extraction("word " * 300, truncate=True, dimensions=7)
    assert cut.shape == (1, 7)


def test_hugging_faces_client_gets_classes(texts: TextService, online: None) -> None:
    client = InferenceClient(model=f"{texts.url}/predict")
    ours = texts.http.post("/predict", json={"inputs": SENTENCES[0]}).json()
    best: Any = client.text_classification(SENTENCES[0], top_k=2)  # takes the first of a list, whatever it is of
    assert (best.label, best.score) == (ours[0]["label"], pytest.approx(ours[0]["score"]))


def test_info_is_that_of_text_embeddings_inference(texts: TextService) -> None:
    found = texts.http.get("/info").json()
    assert found["model_id"] == EMBEDDER
    assert found["model_dtype"] == "float32"
    assert found["max_input_length"] == 256
    assert found["max_client_batch_size"] == 256
    assert found["model_type"] == {"embedding": {"pooling": "mean"}}
    protein = texts.http.get("/info", params={"model": "esm2_mini"}).json()
    assert protein["max_input_length"] == 5000
    ranker = texts.http.get("/info", params={"model": RERANKER}).json()
    assert list(ranker["model_type"]) == ["reranker"]


def test_proteins_are_embedded_by_the_same_route_and_not_normalised(texts: TextService) -> None:
    body = {"input": "MKTVRQERLKSIVRILERSKEPVSGAQL", "model": "esm2_mini"}
    found = texts.http.post("/embed", json=body).json()
    assert len(found["embeddings"][0]) == 144
    assert found["usage"]["total_tokens"] == 30
    as_tei = {"inputs": body["input"], "model": "esm2_mini"}
    assert texts.http.post("/embed", json=as_tei).json() == found["embeddings"]
    (unit,) = texts.http.post("/embed", json=as_tei | {"normalize": True}).json()
    assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-6)
    assert np.linalg.norm(found["embeddings"]) != pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("route", "body", "status", "reason"),
    [
        ("/embed", {"input": "a", "model": "esm2"}, 404, "unknown model 'esm2'; did you mean esm2_mini"),
        ("/embed", {"input": "a", "model": RERANKER}, 404, "unknown model"),
        ("/embed", {"input": [], "model": EMBEDDER}, 422, "there is no text"),
        ("/embed", {"input": ["a"] * 257, "model": EMBEDDER}, 413, "257 texts in one request; the limit is 256"),
        ("/embed", {"input": "hello", "model": "esm2_mini"}, 422, "sequence 0"),
        (
            "/embed",
            {"input": "a", "prompt_name": "query2", "model": EMBEDDER},
            422,
            "has query, document, not 'query2'",
        ),
        ("/embed", {"input": "a", "truncated": True}, 422, "truncated: Extra inputs are not permitted"),
        ("/embed", {"inputs": "a", "normalize": False, "model": EMBEDDER}, 422, "normalises by itself"),
        ("/embed", {"inputs": [[101, 102]], "prompt_name": "query", "model": EMBEDDER}, 422, "before token ids"),
        ("/embed", {"input": "a", "model": "m" * 257}, 422, "at most 256 characters"),
        ("/embed", {"inputs": [1.5] * 10_000, "model": EMBEDDER}, 422, "valid"),
        ("/rerank", {"query": " ", "documents": ["a"]}, 422, "query: it is empty"),
        ("/rerank", {"query": "a", "documents": ["a"] * 65}, 413, "65 texts in one request; the limit is 64"),
        ("/rerank", {"query": "a", "documents": ["a"], "top_n": 0}, 422, "top_n: Input should be greater"),
        ("/predict", {"texts": "a", "model_name": EMBEDDER}, 404, "unknown model"),
        ("/predict", {"texts": "a b c", "max_length": 1, "truncate": True}, 422, "3 tokens at least"),
        ("/predict", {"inputs": ["a", "b", "c"]}, 422, "inputs: 3 texts together"),
        ("/predict", {"sequence": "MKTVRQERLK", "sequences": ["a"]}, 422, "sequences: Extra inputs"),
        ("/predict/batch", {"sequences": ["MKTVRQERLK"] * 65}, 422, "at most 64 items"),
        ("/predict/batch", {"sequences": ["MKTVRQERLK", "MKT1"]}, 422, "sequence 1"),
    ],
)
def test_what_is_wrong_is_said(
    texts: TextService, route: str, body: dict[str, Any], status: int, reason: str
) -> None:
    assert reason in refusal(texts, route, body, status)


@pytest.mark.parametrize("field", ["input_text", "sequence"])
def test_half_a_character_is_no_json(texts: TextService, field: str) -> None:
    route = "/embed" if field == "input_text" else "/predict"
    reply = texts.http.post(
        route, content=f'{{"{field}": "a\\ud800"}}', headers={"content-type": "application/json"}
    )
    assert reply.status_code == 400
    assert "the body is no JSON" in reply.json()["detail"]


def test_models_of_all_kinds_answer_at_the_same_time(texts: TextService) -> None:
    protein = "MKTVRQERLKSIVRILERSKEPVSGAQL"

    def ask(number: int) -> tuple[str, int]:
        text = f"question number {number}"
        route, body = (
            ("/embed", {"input": f"{protein}{'A' * number}", "model": "esm2_mini"}),
            ("/embed", {"input": f"{protein}{'C' * number}", "model": "prot_t5_mini"}),
            ("/embed", {"input": text, "model": EMBEDDER}),
            ("/predict", {"texts": text, "model_name": CLASSIFIER}),
            ("/rerank", {"query": text, "documents": [text, "an answer"], "model": RERANKER}),
        )[number % 5]
        reply = texts.http.post(route, json=body)
        return str(body.get("model", CLASSIFIER)), reply.status_code

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(60)))
    assert {model for model, _ in answers} == {"esm2_mini", "prot_t5_mini", EMBEDDER, CLASSIFIER, RERANKER}
    assert {status for _, status in answers} == {200}


def test_every_reference_of_the_documentation_leads_somewhere(texts: TextService) -> None:
    document = texts.http.get("/openapi.json").json()

    def references(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            yield from [part["$ref"]] if isinstance(part.get("$ref"), str) else []
            part = list(part.values())
        if isinstance(part, list):
            for one in part:
                yield from references(one)

    found = set(references(document))
    assert "#/components/schemas/ErrorBody" in found
    for reference in found:
        place = document
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]


def test_the_embeddings_routes_of_proteins_know_no_texts(texts: TextService) -> None:
    assert "unknown model" in refusal(texts, "/embeddings/compute/BAAI", {"sequences": ["MKT"]}, 404)
    assert list(texts.http.get("/embeddings/models").json()["available_models"]) == ["esm2_mini", "prot_t5_mini"]


def test_a_folder_that_text_models_names_is_served_from_the_store(texts: TextService) -> None:
    about = texts.http.get("/models").json()[EMBEDDER]
    name, _, version = about["tag"].partition(":")
    assert name == "baai--bge-small-en-v1.5"
    assert version == str(stored.resolve(EMBEDDER, str(MINILM)).tag.version)
