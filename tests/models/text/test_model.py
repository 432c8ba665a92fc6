"""What a folder says it is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from models.configs import CheckpointError
from models.text.model import TextModel, kind_of
from tests.models.text.checkpoints import CLASSIFIERS, MINILM

Folder = Callable[[str], Path]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("prompted", "embedding"), ("cross", "reranking"), *((name, "classification") for name in CLASSIFIERS)],
)
def test_the_kind_is_read_from_the_configuration(text_folder: Folder, name: str, kind: str) -> None:
    assert kind_of(text_folder(name)) == kind


def test_a_trained_bi_encoder_is_one() -> None:
    assert kind_of(MINILM) == "embedding"


@pytest.mark.parametrize("architecture", ["BertModel", "BertForMaskedLM", "BertForPreTraining"])
def test_a_bare_encoder_embeds(tmp_path: Path, architecture: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    assert kind_of(tmp_path) == "embedding"


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.json", '{"architectures": ["LlamaForCausalLM"]}', "neither embeds nor classifies"),
        ("config.json", '{"architectures": ["BertForTokenClassification"]}', "neither embeds nor classifies"),
        ("config.json", "[]", "holds no JSON object"),
        ("config.json", "{", "cannot be read"),
        ("config_sentence_transformers.json", '{"model_type": "SparseEncoder"}', "is a SparseEncoder"),
        ("readme.txt", "", "holds neither modules.json nor config.json"),
    ],
)
def test_what_is_no_text_model_is_refused(tmp_path: Path, file: str, content: str, reason: str) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(CheckpointError, match=reason):
        kind_of(tmp_path)


def test_names_of_the_hub_become_names_of_the_store_and_of_a_runner() -> None:
    model = TextModel("BAAI/bge-small-en-v1.5", "embedding")
    assert model.store_name == "baai--bge-small-en-v1.5"
    assert model.runner == "runner_BAAI_bge_small_en_v1_5"
