"""One model of several cannot be loaded: the others answer, and everybody can see why that one does not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import bentoml
import httpx
import pytest

from scripts import import_model
from scripts.local_service import LocalService
from tests.models.damage import cut_off
from tests.models.text.checkpoints import write
from tests.served.texts import EMBEDDER, TextService, serving_texts

BROKEN = "wandb/broken"
IMPATIENT = "tests.served.impatient_service:ProteinEmbeddingService"


@pytest.fixture(scope="module")
def degraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextService]:
    """A text model and a protein model are cut short in the store; the others are well."""
    folder = tmp_path_factory.mktemp("degraded")
    import_model.main([BROKEN, "--text", str(write("t5", folder / "t5-source"))])
    broken = bentoml.models.get("wandb--broken")
    cut_off(Path(broken.path), 100)
    import_model.main(["esm2_t6_8M", "--random", "--seed", "99"])
    protein = bentoml.models.get("esm2_t6_8m")
    cut_off(Path(protein.path), 100)
    try:
        with serving_texts(
            folder,
            MODELS=f"esm2_mini,esm2_t6_8M:{protein.tag.version}",
            TEXT_MODELS=f"{EMBEDDER}={embedder_tag()},{BROKEN}={broken.tag}",
        ) as served:
            yield served
    finally:
        bentoml.models.delete(broken.tag)
        bentoml.models.delete(protein.tag)


def embedder_tag() -> str:
    from models.text import stored
    from tests.models.text.checkpoints import MINILM

    return str(stored.resolve(EMBEDDER, str(MINILM)).tag)


def test_the_others_answer(degraded: TextService) -> None:
    for body in ({"input": "a text", "model": EMBEDDER}, {"input": "MKTVRQERLKSIV", "model": "esm2_mini"}):
        assert degraded.http.post("/embed", json=body).status_code == 200
    assert degraded.http.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("route", "body", "name"),
    [
        ("/predict", {"texts": "a", "model_name": BROKEN}, BROKEN),
        ("/embed", {"input": "MKTVRQERLKSIV", "model": "esm2_t6_8M"}, "esm2_t6_8M"),
    ],
)
def test_who_asks_for_it_is_told_at_once_why_not(
    degraded: TextService, route: str, body: dict[str, str], name: str
) -> None:
    reply = degraded.http.post(route, json=body, timeout=10)
    assert reply.status_code == 503
    assert reply.json()["error"] == "Model not loaded"
    assert f"{name} cannot be loaded" in reply.json()["detail"]
    assert reply.headers["retry-after"] == "60"


def test_health_names_it_with_the_reason(degraded: TextService) -> None:
    reply = degraded.http.get("/health")
    assert reply.status_code == 200
    assert reply.json()["status"] == "degraded"
    assert set(reply.json()["models_failed"]) == {BROKEN, "esm2_t6_8M"}
    assert reply.json()["models_loaded"] == ["esm2_mini", EMBEDDER]
    component = degraded.http.get("/embeddings/health").json()["components"]["runner_wandb_broken"]
    assert component["model_ready"] is False
    assert "cannot be loaded" in component["reason"]
    listed = degraded.http.get("/models").json()
    assert listed[BROKEN]["status"] == "unavailable"


def test_a_model_that_is_mended_is_served_without_a_restart(tmp_path: Path) -> None:
    import_model.main(["mended", "--text", str(write("cross-raw", tmp_path / "source"))])
    stored = bentoml.models.get("mended")
    weights = Path(stored.path) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    settings = {"MODELS": "none", "TEXT_MODELS": f"mended={stored.tag},well={embedder_tag()}"}
    body = {"query": "a", "documents": ["b"], "model": "mended"}
    try:
        with (
            LocalService(tmp_path / "data", settings, IMPATIENT) as service,
            httpx.Client(base_url=service.url, timeout=10) as http,
        ):
            assert http.post("/rerank", json=body).status_code == 503
            weights.write_bytes(whole)
            deadline = time.monotonic() + 60
            while (status := http.post("/rerank", json=body).status_code) == 503 and time.monotonic() < deadline:
                time.sleep(0.1)
            assert status == 200
            assert http.get("/health").json()["status"] == "healthy"
            raw = http.post("/rerank", json={"query": "a", "texts": ["b"], "model": "mended"}).json()
            assert 0 < raw[0]["score"] < 1, (
                "text-embeddings-inference has a sigmoid whatever the model's files say"
            )
    finally:
        bentoml.models.delete(stored.tag)


def test_a_service_of_rerankers_alone_is_healthy_and_embeds_nothing(tmp_path: Path) -> None:
    source = write("cross-raw", tmp_path / "source")
    with (
        LocalService(tmp_path / "data", {"MODELS": "none", "TEXT_MODELS": f"ranks={source}"}) as service,
        httpx.Client(base_url=service.url, timeout=30) as http,
    ):
        assert http.post("/rerank", json={"query": "a", "documents": ["b"]}).status_code == 200
        health = http.get("/health")
        assert (health.status_code, health.json()["model"]) == (200, None)
        assert http.get("/info").json()["model_id"] == "ranks"
        assert http.get("/embeddings/config").json()["texts"]["default_embedding_model"] is None
        refused = http.post("/embed", json={"inputs": "a"})
        assert (refused.status_code, refused.json()["error"]) == (404, "Unknown model")


def test_where_no_model_is_whole_the_service_does_not_start(tmp_path: Path) -> None:
    import_model.main(["esm2_t6_8M", "--random", "--seed", "98"])
    stored = bentoml.models.get("esm2_t6_8m")
    cut_off(Path(stored.path), 100)
    try:
        with (
            pytest.raises(RuntimeError, match="is truncated"),
            LocalService(tmp_path / "data", {"MODELS": f"esm2_t6_8M:{stored.tag.version}"}) as service,
        ):
            httpx.get(service.url)
    finally:
        bentoml.models.delete(stored.tag)
