"""From what TEXT_MODELS names into the model store: folders, tags, the hub."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import bentoml
import pytest

from models.configs import CheckpointError
from models.text.stored import choose_files, resolve, row_of
from scripts.local_service import ROOT, free_port
from tests.models.stores import own_store
from tests.models.text.checkpoints import MINILM
from tests.scripts.hub import Hub, serving

Folder = Callable[[str], Path]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """An empty model store."""
    with own_store(tmp_path / "store") as folder:
        yield folder


def test_a_folder_is_stored_with_its_parts_under_its_digest(store: Path) -> None:
    stored = resolve("Some/MiniLM", str(MINILM))
    assert stored.tag.name == "some--minilm"
    assert len(str(stored.tag.version)) == 16
    assert stored.info.metadata["kind"] == "embedding"
    assert stored.info.metadata["trained"] is True
    assert (Path(stored.path) / "1_Pooling" / "config.json").read_text()
    assert not list(Path(stored.path).rglob("*.md"))
    assert row_of("Some/MiniLM", stored).kind == "embedding"
    assert resolve("Some/MiniLM", str(MINILM)).tag == stored.tag


def test_what_anybody_may_read_is_stored_so(store: Path) -> None:
    stored = resolve("minilm", str(MINILM))
    for path in (Path(stored.path), *Path(stored.path).rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)


def test_another_content_is_another_version(store: Path, text_folder: Folder) -> None:
    first = resolve("model", str(text_folder("bert")))
    second = resolve("model", str(text_folder("cross")))
    assert first.tag.name == second.tag.name
    assert first.tag.version != second.tag.version
    assert row_of("model", first).kind == "classification"
    assert row_of("model", second).kind == "reranking"


def test_a_tag_is_what_it_says(store: Path, text_folder: Folder) -> None:
    stored = resolve("model", str(text_folder("bert")))
    resolve("model", str(text_folder("cross")))
    assert resolve("served as this", str(stored.tag)).tag == stored.tag


def test_a_model_that_something_else_put_into_the_store_is_looked_at(store: Path, text_folder: Folder) -> None:
    with bentoml.models.create("other:one") as entry:
        shutil.copytree(text_folder("deberta"), entry.path, dirs_exist_ok=True)
    assert row_of("other", resolve("other", "other:one")).kind == "classification"


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./nowhere", "model:0123"])
def test_a_source_that_is_nothing_is_told_without_asking_the_hub(store: Path, source: str) -> None:
    with pytest.raises(CheckpointError, match="is neither a folder nor in the model store"):
        resolve("model", source)


def test_a_folder_that_is_no_text_model_is_refused_by_its_own_name(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"^empty holds neither"):
        resolve("model", str(folder))


def test_code_other_frameworks_and_second_copies_stay_behind() -> None:
    names = [
        *("config.json", "model.safetensors", "pytorch_model.bin", "modeling_evil.py", "onnx/model.onnx"),
        *(
            "2_Dense/config.json",
            "2_Dense/pytorch_model.bin",
            "tf_model.h5",
            ".git/config.json",
            "openvino/a.json",
        ),
    ]
    assert choose_files(names) == [
        "2_Dense/config.json",
        "2_Dense/pytorch_model.bin",
        "config.json",
        "model.safetensors",
    ]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


def run_import(home: Path, hub_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"BENTOML_HOME": str(home), "HF_HOME": str(home / "hub"), "HF_ENDPOINT": hub_url}
    command = [sys.executable, "-m", "scripts.import_model", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_model_of_the_hub_is_fetched_once(hub: Hub, text_folder: Folder, tmp_path: Path) -> None:
    commit = hub.add("org/small", text_folder("bert"))
    first = run_import(tmp_path, hub.url, "org/small", "--text", "org/small")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("org--small:")
    assert any(commit in request for request in hub.requests)
    hub.requests.clear()
    again = run_import(tmp_path, f"http://127.0.0.1:{free_port()}", "org/small", "--text", "org/small")
    assert again.stdout == first.stdout
    assert not hub.requests


def test_a_hub_that_does_not_answer_is_told_in_one_line(tmp_path: Path) -> None:
    done = run_import(tmp_path, f"http://127.0.0.1:{free_port()}", "org/other", "--text", "org/other")
    assert done.returncode == 1
    assert done.stderr.startswith("import_model: org/other could not be fetched from the hub")
    assert done.stderr.count("\n") == 1
