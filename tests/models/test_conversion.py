"""fair-esm's .pt and torch's .bin into standard folders; nothing in such a file is ever run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models import folders as folders_module
from models.catalogue import MINI, Model
from models.checkpoints import INDEX, WEIGHTS, verify
from models.configs import CheckpointError
from models.conversion import TORCH_INDEX, TORCH_WEIGHTS, convert_fair_esm, convert_torch_weights
from models.engine import Engine
from tests.models.conftest import SMALL_T5, Folders
from tests.models.references import (
    embed,
    embed_by_fair_esm,
    fair_esm_of,
    random_sequence,
    worst_relative_error,
)

SEQUENCES = [random_sequence(length, seed=length) for length in (1, 40, 150)]

Published = dict[str, Any]


def published(reference: torch.nn.Module, model: Model) -> Published:
    """A checkpoint as fair-esm publishes them: names with prefixes, sizes in a Namespace, no contact head.

    Source: fair-esm, esm/pretrained.py, _load_model_and_alphabet_core_v2; the keys of esm2_t6_8M_UR50D.pt.
    """
    state = {}
    for name, tensor in reference.state_dict().items():
        if not name.startswith("contact_head."):
            prefix = "encoder." if name.startswith("lm_head.") else "encoder.sentence_encoder."
            state[prefix + name] = tensor
    args = argparse.Namespace(
        arch="esm2",
        encoder_layers=model.num_layers,
        encoder_embed_dim=model.dim,
        encoder_attention_heads=model.num_heads,
        token_dropout=True,
    )
    return {"cfg": {"_name": None, "model": args}, "model": state}


@pytest.fixture(scope="module")
def reference(folders: Folders) -> torch.nn.Module:
    return fair_esm_of(folders.of(MINI), MINI)


@pytest.fixture
def fair_esm_file(reference: torch.nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "esm2_mini.pt"
    torch.save(published(reference, MINI), path)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def test_a_fair_esm_checkpoint_gives_fair_esms_embeddings(
    fair_esm_file: Path, reference: torch.nn.Module, mini: Engine, target: Path
) -> None:
    convert_fair_esm(fair_esm_file, target)
    found = embed(Engine(target, MINI, precision="fp32"), SEQUENCES)
    expected = embed_by_fair_esm(reference, SEQUENCES)
    assert max(map(worst_relative_error, found, expected)) <= 1e-5  # Measured: 6.9e-7
    assert all(map(np.array_equal, found, embed(mini, SEQUENCES)))


def test_every_published_weight_of_fair_esm_arrives(fair_esm_file: Path, folders: Folders, target: Path) -> None:
    convert_fair_esm(fair_esm_file, target)
    found, expected = load_file(target / WEIGHTS), load_file(folders.of(MINI) / WEIGHTS)
    assert found.keys() == {name for name in expected if "contact_head" not in name}
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_transformers_finds_every_weight_in_a_converted_checkpoint(fair_esm_file: Path, target: Path) -> None:
    from transformers import EsmForMaskedLM

    convert_fair_esm(fair_esm_file, target)
    _, report = EsmForMaskedLM.from_pretrained(target, output_loading_info=True)
    # fair-esm publishes the contact head in a file of its own
    assert all("contact_head" in name or name.endswith("inv_freq") for name in report["missing_keys"])
    assert not report["unexpected_keys"]


def test_a_half_precision_checkpoint_is_written_in_float32(
    reference: torch.nn.Module, tmp_path: Path, target: Path
) -> None:
    data = published(reference, MINI)
    data["model"] = {name: tensor.half() for name, tensor in data["model"].items()}
    torch.save(data, tmp_path / "half.pt")
    convert_fair_esm(tmp_path / "half.pt", target)
    assert {tensor.dtype for tensor in load_file(target / WEIGHTS).values()} == {torch.float32}


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("place", ["the file", "the config", "a weight"])
def test_code_in_a_fair_esm_file_is_not_run(
    reference: torch.nn.Module, tmp_path: Path, target: Path, place: str
) -> None:
    mark = tmp_path / "it-ran"
    data: Any = published(reference, MINI)
    if place == "the file":
        data = Malicious(mark)
    elif place == "the config":
        data["cfg"]["model"].encoder_layers = Malicious(mark)
    else:
        data["model"]["encoder.lm_head.bias"] = Malicious(mark)
    path = tmp_path / "malicious.pt"
    torch.save(data, path)
    with pytest.raises(CheckpointError, match="is no readable torch file") as caught:
        convert_fair_esm(path, target)
    assert "\n" not in str(caught.value)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the file does what the test says it does
    assert mark.exists()


def test_code_in_a_bin_file_is_not_run(tmp_path: Path, target: Path) -> None:
    mark = tmp_path / "it-ran"
    torch.save({"esm.lm_head.bias": Malicious(mark)}, target / TORCH_WEIGHTS)
    with pytest.raises(CheckpointError, match="is no readable torch file"):
        convert_torch_weights(target)
    assert not mark.exists()


ARGS = argparse.Namespace(encoder_layers=4, encoder_embed_dim=144, encoder_attention_heads=6)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param({"encoder.layers.0.fc1.bias": torch.ones(2)}, id="bare weights"),
        pytest.param([1, 2], id="a list"),
        pytest.param({"args": argparse.Namespace(arch="roberta_large"), "model": {}}, id="ESM-1b"),
        pytest.param({"cfg": None, "model": {}}, id="no config"),
        pytest.param({"cfg": {"model": argparse.Namespace()}, "model": {}}, id="no sizes"),
        pytest.param({"cfg": {"model": ARGS}}, id="no weights"),
        pytest.param(
            {"cfg": {"model": argparse.Namespace(**vars(ARGS) | {"encoder_attention_heads": 0})}, "model": {}},
            id="no heads",
        ),
        pytest.param({"cfg": {"model": ARGS}, "model": [1]}, id="weights a list"),
        pytest.param({"cfg": {"model": ARGS}, "model": {"encoder.a": 1}}, id="weights numbers"),
    ],
)
def test_a_torch_file_of_another_kind_is_refused(tmp_path: Path, target: Path, data: object) -> None:
    torch.save(data, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt is no fair-esm ESM-2 checkpoint") as caught:
        convert_fair_esm(tmp_path / "other.pt", target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 garbage"])
def test_a_file_that_torch_cannot_read_is_refused(tmp_path: Path, target: Path, content: bytes) -> None:
    (tmp_path / "garbage.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"garbage\.pt is no readable torch file") as caught:
        convert_fair_esm(tmp_path / "garbage.pt", target)
    assert "\n" not in str(caught.value)


def test_a_truncated_fair_esm_file_is_refused(fair_esm_file: Path, target: Path) -> None:
    fair_esm_file.write_bytes(fair_esm_file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="is no readable torch file"):
        convert_fair_esm(fair_esm_file, target)


def test_a_file_that_is_not_there_is_named(tmp_path: Path, target: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pt is missing"):
        convert_fair_esm(tmp_path / "nowhere.pt", target)


def test_a_fair_esm_file_whose_sizes_are_not_its_weights_is_refused(
    reference: torch.nn.Module, tmp_path: Path, target: Path
) -> None:
    data = published(reference, MINI)
    data["cfg"]["model"].encoder_layers = 5
    torch.save(data, tmp_path / "five.pt")
    convert_fair_esm(tmp_path / "five.pt", target)
    with pytest.raises(CheckpointError, match=r"lacks the weight 'encoder\.layer\.4\."):
        verify(target, dataclasses.replace(MINI, num_layers=5))


def state_of(class_name: str, folder: Path) -> dict[str, torch.Tensor]:
    """What transformers holds, tied weights under each of their names."""
    import transformers

    state: dict[str, torch.Tensor] = getattr(transformers, class_name).from_pretrained(folder).state_dict()
    return state


def as_bin(source: Path, target: Path, shards: dict[str, dict[str, torch.Tensor]]) -> None:
    """A folder as older versions of transformers saved it: config, tokenizer and torch files."""
    for path in source.iterdir():
        if path.name != WEIGHTS:
            (target / path.name).write_bytes(path.read_bytes())
    for name, shard in shards.items():
        torch.save(shard, target / name)
    if len(shards) > 1:
        weight_map = {name: file for file, shard in shards.items() for name in shard}
        (target / TORCH_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


BIN_SOURCES = [
    ("EsmModel", MINI),
    ("EsmForMaskedLM", MINI),
    ("T5EncoderModel", SMALL_T5),
    ("T5ForConditionalGeneration", SMALL_T5),
]


@pytest.mark.parametrize(("class_name", "model"), BIN_SOURCES)
@pytest.mark.parametrize("num_shards", [1, 3])
def test_torch_weights_give_the_same_embeddings(
    folders: Folders, target: Path, class_name: str, model: Model, num_shards: int
) -> None:
    state = state_of(class_name, folders.of(model))
    files = [f"pytorch_model-0000{i + 1}-of-0000{num_shards}.bin" for i in range(num_shards)]
    names = sorted(state)
    shards = {file: {n: state[n] for n in names[i::num_shards]} for i, file in enumerate(files)}
    as_bin(folders.of(model), target, shards if num_shards > 1 else {TORCH_WEIGHTS: state})

    convert_torch_weights(target)

    assert not [path for path in target.iterdir() if ".bin" in path.name]
    found = embed(Engine(target, model, precision="fp32"), SEQUENCES)
    expected = embed(Engine(folders.of(model), model, precision="fp32"), SEQUENCES)
    assert all(map(np.array_equal, found, expected))


def test_torch_weights_keep_their_precision(folders: Folders, target: Path) -> None:
    state = state_of("T5EncoderModel", folders.of(SMALL_T5))  # float16, and float32 where transformers insists
    as_bin(folders.of(SMALL_T5), target, {TORCH_WEIGHTS: state})
    convert_torch_weights(target)
    written = load_file(target / WEIGHTS)
    assert {name: tensor.dtype for name, tensor in written.items()} == {n: state[n].dtype for n in written}


def test_torch_weights_of_a_large_model_become_shards(
    folders: Folders, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders_module, "MAX_SHARD_BYTES", 1_000_000)
    as_bin(folders.of(MINI), target, {TORCH_WEIGHTS: state_of("EsmModel", folders.of(MINI))})
    convert_torch_weights(target)
    assert (target / INDEX).exists()
    verify(target, MINI)


def test_a_shard_that_is_not_there_is_named(folders: Folders, target: Path) -> None:
    state = state_of("EsmModel", folders.of(MINI))
    as_bin(folders.of(MINI), target, {"pytorch_model-1.bin": state, "pytorch_model-2.bin": {"x": torch.ones(1)}})
    (target / "pytorch_model-2.bin").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model-2\.bin is missing"):
        convert_torch_weights(target)


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "{}",
        "[]",
        '{"weight_map": {"x": "../pytorch_model.bin"}}',
    ],
)
def test_an_index_of_torch_files_that_is_none_is_refused(folders: Folders, target: Path, index: str) -> None:
    as_bin(folders.of(MINI), target, {TORCH_WEIGHTS: state_of("EsmModel", folders.of(MINI))})
    (target / TORCH_INDEX).write_text(index)
    with pytest.raises(CheckpointError, match="index"):
        convert_torch_weights(target)


@pytest.mark.parametrize("content", [[1], {"a": 1}, torch.ones(3)], ids=["list", "numbers", "tensor"])
def test_a_bin_file_without_weights_is_refused(target: Path, content: object) -> None:
    torch.save(content, target / TORCH_WEIGHTS)
    with pytest.raises(CheckpointError):
        convert_torch_weights(target)


def test_a_torch_file_from_before_zip_files_is_read(folders: Folders, target: Path) -> None:
    as_bin(folders.of(MINI), target, {})
    state = state_of("EsmModel", folders.of(MINI))
    torch.save(state, target / TORCH_WEIGHTS, _use_new_zipfile_serialization=False)
    convert_torch_weights(target)
    verify(target, MINI)


def test_reading_a_fair_esm_file_leaves_torchs_list_of_safe_classes_as_it_was(
    fair_esm_file: Path, target: Path
) -> None:
    convert_fair_esm(fair_esm_file, target)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()
