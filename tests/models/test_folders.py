"""What we write is a standard Hugging Face folder: transformers loads it, in one file or in shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models import folders as folders_module
from models.catalogue import MINI, Model
from models.checkpoints import INDEX, WEIGHTS
from models.engine import Engine
from models.folders import write_weights
from models.untrained import write_untrained
from tests.models.conftest import SEED, SMALL_T5, Folders
from tests.models.references import embed, esm2_by_transformers, random_sequence, worst_relative_error

TENSORS = {f"t{i}": torch.full((256,), float(i)) for i in range(5)}  # a kilobyte each


def test_transformers_finds_every_weight_of_a_masked_language_model(folders: Folders) -> None:
    from transformers import EsmForMaskedLM

    _, report = EsmForMaskedLM.from_pretrained(folders.of(MINI), output_loading_info=True)
    # The frequencies of the rotary embedding are no weights: every implementation computes them
    assert report["missing_keys"] <= {"esm.rotary_embeddings.inv_freq"}
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]


def test_transformers_finds_every_weight_of_a_bare_esm2(folders: Folders) -> None:
    from transformers import EsmModel

    _, report = EsmModel.from_pretrained(folders.of(MINI), add_pooling_layer=False, output_loading_info=True)
    assert report["missing_keys"] <= {"rotary_embeddings.inv_freq"}
    assert all(name.startswith("lm_head.") for name in report["unexpected_keys"])
    assert not report["mismatched_keys"]


def test_transformers_finds_every_weight_of_a_t5_encoder(folders: Folders) -> None:
    from transformers import T5EncoderModel

    _, report = T5EncoderModel.from_pretrained(folders.of(SMALL_T5), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]


@pytest.mark.parametrize("model", [MINI, SMALL_T5], ids=lambda model: str(model.name))
def test_the_config_is_what_transformers_reads_and_writes(folders: Folders, tmp_path: Path, model: Model) -> None:
    from transformers import AutoConfig

    AutoConfig.from_pretrained(folders.of(model)).save_pretrained(tmp_path)
    ours = json.loads((folders.of(model) / "config.json").read_text())
    theirs = json.loads((tmp_path / "config.json").read_text())
    assert {key: theirs.get(key) for key in ours} == ours


def test_a_small_checkpoint_is_one_file(tmp_path: Path) -> None:
    write_weights(tmp_path, TENSORS.items())
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]
    stored = load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(stored[name], tensor) for name, tensor in TENSORS.items())


def test_a_large_checkpoint_is_shards_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders_module, "MAX_SHARD_BYTES", 2048)
    write_weights(tmp_path, TENSORS.items())
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*shards, INDEX]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 5 * 1024
    assert index["weight_map"] == dict(zip(TENSORS, [shards[i // 2] for i in range(5)], strict=True))
    for name, shard in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / shard)[name], TENSORS[name])


def test_a_tensor_larger_than_a_shard_gets_one_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders_module, "MAX_SHARD_BYTES", 100)
    write_weights(tmp_path, TENSORS.items())
    assert len(list(tmp_path.glob("model-*.safetensors"))) == 5


def test_a_part_of_a_larger_tensor_is_written_alone(tmp_path: Path) -> None:
    whole = torch.arange(1000.0).view(10, 100)
    write_weights(tmp_path, [("part", whole[:, 3])])
    assert load_file(tmp_path / WEIGHTS)["part"].tolist() == whole[:, 3].tolist()


@pytest.mark.parametrize("model", [MINI, SMALL_T5], ids=lambda model: str(model.name))
def test_shards_give_the_embeddings_of_one_file(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    monkeypatch.setattr(folders_module, "MAX_SHARD_BYTES", 100_000)
    write_untrained(tmp_path, model, SEED)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    sequences = [random_sequence(50)]
    (found,) = embed(Engine(tmp_path, model, precision="fp32"), sequences)
    (expected,) = embed(Engine(folders.of(model), model, precision="fp32"), sequences)
    assert (found == expected).all()


def test_transformers_loads_our_shards(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders_module, "MAX_SHARD_BYTES", 1_000_000)
    write_untrained(tmp_path, MINI, SEED)
    (sharded,) = esm2_by_transformers(tmp_path, ["MKTAYIAK"])
    (whole,) = esm2_by_transformers(folders.of(MINI), ["MKTAYIAK"])
    assert worst_relative_error(sharded, whole) == 0


def test_prot_t5s_tokenizer_splits_at_spaces_only(folders: Folders) -> None:
    """Without spaces the published tokenizer sees one unknown word; ours must not be kinder."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders.of(SMALL_T5))
    assert tokenizer("M K")["input_ids"] == [*tokenizer.convert_tokens_to_ids(["▁M", "▁K"]), 1]
    assert tokenizer.unk_token_id in tokenizer("MK")["input_ids"]
