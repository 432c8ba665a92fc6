"""The Bento: built from the tree, served from elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import bentoml
import httpx
import pytest

from models import store
from scripts.local_service import ROOT, LocalService
from serving import image
from tests.models.text.checkpoints import MINILM


@pytest.fixture(scope="module")
def bento(stored_models: None) -> Iterator[bentoml.Bento]:
    command = [sys.executable, "-m", "scripts.build_bento"]
    environment = {**os.environ, "MODELS": "esm2_t6_8M,esm2_mini", "TEXT_MODELS": f"org/minilm={MINILM}"}
    output = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True).stdout.decode()
    tag, folder = output.splitlines()
    assert tag.startswith("protein_embedding_service:")
    bento = bentoml.bentos.get(tag)
    assert bento.path == folder
    yield bento
    bentoml.bentos.delete(tag)


def test_it_holds_the_service_and_nothing_else(bento: bentoml.Bento) -> None:
    source = Path(bento.path) / "src"
    assert {path.name for path in source.iterdir()} == {
        *("service.py", "models", "serving", "requirements.txt", "bentofile.yaml")
    }
    assert not list(source.rglob("*.pyc"))


def test_it_names_its_models_in_their_versions(bento: bentoml.Bento) -> None:
    expected = {str(bentoml.models.get(name).tag) for name in ("esm2_mini", "esm2_t6_8m", "org--minilm")}
    assert {str(model.tag) for model in bento.info.all_models} == expected


def test_its_models_are_inside_for_any_builder_of_images(bento: bentoml.Bento) -> None:
    for model in bento.info.all_models:
        inside = Path(bento.path, "models", str(model.tag).replace(":", "/"))
        stored = Path(bentoml.models.get(model.tag).path)
        assert store.digest_of(inside) == store.digest_of(stored)
        assert (inside.parent / "latest").read_text() == inside.name, "where nobody may write, BentoML cannot"


def test_its_dockerfile_brings_no_compilers(bento: bentoml.Bento) -> None:
    dockerfile = Path(bento.path, "env", "docker", "Dockerfile").read_text()
    assert f"FROM {image.BASE} AS" in dockerfile
    assert "IMAGE_TORCH=cpu" in dockerfile
    assert "build-essential" not in dockerfile
    assert bento.info.labels["torch"] == "cpu"


def test_served_from_another_folder_it_runs_what_it_was_built_with(
    bento: bentoml.Bento, data_dir: Path, tmp_path: Path
) -> None:
    with LocalService(data_dir, {}, target=str(bento.tag), folder=tmp_path) as service:
        models = httpx.get(f"{service.url}/embeddings/models").json()["available_models"]
        assert list(models) == ["esm2_t6_8M", "esm2_mini"]
        reply = httpx.post(
            f"{service.url}/embeddings/compute/esm2_t6_8M",
            json={"sequences": ["MKTAYIAKQRQISFVKSHFSRQ"]},
            timeout=60,
        )
        assert reply.status_code == 200
        text = httpx.post(f"{service.url}/embed", json={"input_text": "a text"}, timeout=60)
        assert text.json()["model"] == "org/minilm"
        assert len(text.json()["embedding"]) == 384
