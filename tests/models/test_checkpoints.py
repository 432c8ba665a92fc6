"""Reading a checkpoint: whoever wrote it, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models import checkpoints
from models.catalogue import CATALOGUE, MINI
from models.checkpoints import INDEX, WEIGHTS, canonical_name
from models.configs import CheckpointError
from models.engine import Engine
from models.untrained import write_untrained
from scripts.local_service import ROOT
from tests.models.conftest import SMALL_T5, Folders
from tests.models.damage import DAMAGES, NORM, Damage, change_config, change_header, write_index
from tests.models.references import embed, random_sequence

SEQUENCES = [random_sequence(length, seed=length) for length in (1, 40, 150)]

by_damage = pytest.mark.parametrize(
    "damage",
    [pytest.param(d, id=name) for name, d in DAMAGES.items()],
)


@by_damage
def test_a_bad_checkpoint_is_refused_in_one_line(checkpoint: Path, damage: Damage) -> None:
    checkpoints.verify(checkpoint, MINI)
    damage.spoil(checkpoint)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.verify(checkpoint, MINI)
    assert damage.message in str(caught.value)
    assert "\n" not in str(caught.value)


@by_damage
def test_an_engine_refuses_a_bad_checkpoint_too(checkpoint: Path, damage: Damage) -> None:
    damage.spoil(checkpoint)
    with pytest.raises(CheckpointError):
        Engine(checkpoint, MINI)


@pytest.mark.parametrize(
    "spoil",
    [
        # Source: transformers EsmConfig: absent, these are "absolute" and False, which the engine lacks
        pytest.param(lambda f: change_config(f, position_embedding_type=None), id="no word on positions"),
        pytest.param(lambda f: change_config(f, token_dropout=None), id="no word on token dropout"),
        pytest.param(lambda f: change_header(f, data_offsets=[0, 576]), id="one tensor upon another"),
        pytest.param(lambda f: write_index(f, {"weight_map": {NORM: ".."}}), id="index to the folder above"),
    ],
)
def test_a_checkpoint_that_is_bad_in_a_rarer_way_is_refused(
    checkpoint: Path, spoil: Callable[[Path], object]
) -> None:
    spoil(checkpoint)
    with pytest.raises(CheckpointError):
        checkpoints.verify(checkpoint, MINI)


def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path) -> None:
    write_untrained(tmp_path, CATALOGUE["esm2_t6_8M"], seed=0)
    checkpoints.verify(tmp_path, CATALOGUE["esm2_t6_8M"])
    with pytest.raises(CheckpointError, match="is not esm2_t12_35M: num_layers is 6, not 12"):
        checkpoints.verify(tmp_path, CATALOGUE["esm2_t12_35M"])


def test_a_checkpoint_of_the_other_family_is_refused(folders: Folders) -> None:
    with pytest.raises(CheckpointError, match="model_type is 't5', the engine needs 'esm'"):
        checkpoints.verify(folders.of(SMALL_T5), MINI)
    with pytest.raises(CheckpointError, match="model_type is 'esm', the engine needs 't5'"):
        checkpoints.verify(folders.of(MINI), SMALL_T5)


def test_a_checkpoint_is_checked_without_loading_torch(folders: Folders) -> None:
    code = (
        "import sys; from pathlib import Path; from models import checkpoints; from models.catalogue import MINI; "
        "checkpoints.verify(Path(sys.argv[1]), MINI); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(folders.of(MINI))], cwd=ROOT, check=True)


def test_loading_gives_every_weight_as_it_is_stored(folders: Folders) -> None:
    config, weights = checkpoints.load(folders.of(MINI), MINI)
    stored = load_file(folders.of(MINI) / WEIGHTS)
    assert weights.keys() == checkpoints.weight_shapes("esm2", config).keys()
    assert all(torch.equal(tensor, stored[f"esm.{name}"]) for name, tensor in weights.items())


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("esm.encoder.layer.3.LayerNorm.weight", "encoder.layer.3.LayerNorm.weight"),
        ("encoder.layer.3.LayerNorm.weight", "encoder.layer.3.LayerNorm.weight"),
        ("esm.encoder.layer.3.LayerNorm.gamma", "encoder.layer.3.LayerNorm.weight"),
        ("esm.encoder.layer.3.attention.LayerNorm.beta", "encoder.layer.3.attention.LayerNorm.bias"),
        ("encoder.embed_tokens.weight", "shared.weight"),
        ("decoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    ],
)
def test_every_spelling_of_a_name_is_known(stored: str, name: str) -> None:
    assert canonical_name(stored) == name


def renamed(folder: Path, rename: Callable[[str], str], extra: tuple[str, ...] = ()) -> None:
    weights = {rename(name): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(weights | {name: torch.ones(12) for name in extra}, folder / WEIGHTS, metadata={"format": "pt"})


def old_names(name: str) -> str:
    """As transformers wrote norms when they came from TensorFlow."""
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


@pytest.mark.parametrize(
    ("rename", "extra"),
    [
        (old_names, ()),
        (lambda name: name.removeprefix("esm."), ("pooler.dense.weight", "pooler.dense.bias")),
        (
            str,
            (
                "esm.encoder.layer.0.attention.self.rotary_embeddings.inv_freq",
                "esm.encoder.layer.*.attention.self.rotary_embeddings.inv_freq",
                "esm.rotary_embeddings.inv_freq",
                "esm.embeddings.position_ids",
                "esm.embeddings.position_embeddings.weight",
                "lm_head.decoder.weight",
            ),
        ),
    ],
    ids=["gamma and beta", "no prefix and a pooler", "buffers and heads"],
)
def test_a_checkpoint_with_other_names_gives_the_same_embeddings(
    checkpoint: Path, mini: Engine, rename: Callable[[str], str], extra: tuple[str, ...]
) -> None:
    renamed(checkpoint, rename, extra)
    found = embed(Engine(checkpoint, MINI, precision="fp32"), SEQUENCES)
    assert all(map(np.array_equal, found, embed(mini, SEQUENCES)))


@pytest.mark.parametrize("class_name", ["EsmModel", "EsmForMaskedLM"])
@pytest.mark.parametrize("max_shard_size", ["5GB", "1MB"])
def test_what_transformers_saves_of_esm2_gives_the_same_embeddings(
    mini: Engine, folders: Folders, tmp_path: Path, class_name: str, max_shard_size: str
) -> None:
    import transformers

    loaded = getattr(transformers, class_name).from_pretrained(folders.of(MINI))
    loaded.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    transformers.AutoTokenizer.from_pretrained(folders.of(MINI)).save_pretrained(tmp_path)
    assert (tmp_path / INDEX).exists() == (max_shard_size == "1MB")
    found = embed(Engine(tmp_path, MINI, precision="fp32"), SEQUENCES)
    assert all(map(np.array_equal, found, embed(mini, SEQUENCES)))


@pytest.mark.parametrize("class_name", ["T5EncoderModel", "T5ForConditionalGeneration"])
def test_what_transformers_saves_of_t5_gives_the_same_embeddings(
    small_t5: Engine, folders: Folders, tmp_path: Path, class_name: str
) -> None:
    import transformers

    loaded = getattr(transformers, class_name).from_pretrained(folders.of(SMALL_T5))
    loaded.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(folders.of(SMALL_T5)).save_pretrained(tmp_path)
    found = embed(Engine(tmp_path, SMALL_T5, precision="fp32"), SEQUENCES)
    assert all(map(np.array_equal, found, embed(small_t5, SEQUENCES)))


def test_word_embeddings_under_the_encoders_name_are_the_shared_ones(
    small_t5: Engine, folders: Folders, tmp_path: Path
) -> None:
    for path in folders.of(SMALL_T5).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    renamed(tmp_path, lambda name: name.replace("shared.weight", "encoder.embed_tokens.weight"))
    found = embed(Engine(tmp_path, SMALL_T5, precision="fp32"), SEQUENCES)
    assert all(map(np.array_equal, found, embed(small_t5, SEQUENCES)))
