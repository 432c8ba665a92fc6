"""Models into the store: from the hub, a folder, a fair-esm file, or a seed; and what is refused in one line."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import bentoml
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models import checkpoints
from models import folders as folders_module
from models.catalogue import CATALOGUE, MINI
from models.checkpoints import INDEX, WEIGHTS
from models.engine import Engine
from models.untrained import write_untrained
from scripts.import_model import choose_files, main
from scripts.local_service import ROOT, free_port
from tests.models.damage import DAMAGES, Damage, change_weights
from tests.models.references import embed, esm2_by_transformers, random_sequence, worst_relative_error
from tests.models.stores import own_store
from tests.scripts.hub import Hub, serving

TINY = CATALOGUE["esm2_t6_8M"]
SEQUENCES = [random_sequence(length, seed=length) for length in (1, 40)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """An empty model store."""
    with own_store(tmp_path / "models") as folder:
        yield folder


@pytest.fixture(scope="session")
def mini_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of esm2_mini, to be read only."""
    folder = tmp_path_factory.mktemp("mini")
    write_untrained(folder, MINI, seed=1)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of esm2_t6_8M, the smallest that has a repository; to be read only."""
    folder = tmp_path_factory.mktemp("tiny")
    write_untrained(folder, TINY, seed=1)
    return folder


@pytest.fixture
def checkpoint(mini_folder: Path, tmp_path: Path) -> Path:
    """A good checkpoint of esm2_mini, to be spoilt."""
    return Path(shutil.copytree(mini_folder, tmp_path / "checkpoint"))


Import = Callable[..., bentoml.Model]


@pytest.fixture
def run_import(store: Path, capsys: pytest.CaptureFixture[str]) -> Import:
    """Runs the script in this process; what it stored."""

    def run(*arguments: str | Path) -> bentoml.Model:
        main([str(argument) for argument in arguments])
        return bentoml.models.get(capsys.readouterr().out.strip())

    return run


def refused(*arguments: str | Path) -> str:
    """The line that the script ends with."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    message = caught.value.code
    assert isinstance(message, str)
    assert message.startswith("import_model: ")
    assert "\n" not in message
    return message


def contents(store: Path) -> dict[str, tuple[int, int]]:
    """Everything in a store, with size and time of change."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(store.rglob("*"))}


# From a seed


def test_the_untrained_model_needs_nothing_from_outside(run_import: Import) -> None:
    stored = run_import("esm2_mini")
    assert stored.tag.name == "esm2_mini"
    assert stored.info.metadata["source"] == "untrained"
    assert stored.info.metadata["revision"] == "seed 0"
    checkpoints.verify(Path(stored.path), MINI)


def test_the_same_seed_has_the_same_tag_and_another_seed_another(run_import: Import) -> None:
    tags = [run_import("esm2_t6_8M", "--random", "--seed", seed).tag for seed in ("7", "7", "8")]
    assert tags[0] == tags[1] != tags[2]
    assert len(bentoml.models.list("esm2_t6_8m")) == 2


def test_random_weights_are_labelled_untrained(run_import: Import) -> None:
    stored = run_import("esm2_t6_8M", "--random", "--seed", "7")
    assert stored.info.labels == {"family": "esm2", "trained": "false"}
    metadata = dict(stored.info.metadata)
    digest = str(metadata.pop("digest"))
    assert metadata == {
        "name": "esm2_t6_8M",
        "source": "untrained",
        "revision": "seed 7",
        "dim": 320,
        "num_layers": 6,
        "trained": False,
    }
    assert digest.startswith(f"sha256:{stored.tag.version}")
    assert len(digest) == len("sha256:") + 64


# From a folder


def test_a_folder_is_stored_as_it_is(run_import: Import, mini_folder: Path) -> None:
    stored = run_import("esm2_mini", "--from", mini_folder)
    for path in mini_folder.iterdir():
        assert (Path(stored.path) / path.name).read_bytes() == path.read_bytes()
    assert stored.info.metadata["source"] == mini_folder.name
    assert stored.info.metadata["revision"] == "local"
    assert stored.info.metadata["trained"] is True
    assert stored.info.labels["trained"] == "true"


def test_a_folder_of_untrained_weights_is_labelled_so_if_told(run_import: Import, mini_folder: Path) -> None:
    stored = run_import("esm2_mini", "--from", mini_folder, "--untrained")
    assert stored.info.metadata["trained"] is False
    assert stored.info.labels["trained"] == "false"


def test_files_that_an_encoder_does_not_need_stay_behind(run_import: Import, checkpoint: Path) -> None:
    for name in ("README.md", "tf_model.h5", "pytorch_model.bin", "training_args.bin", ".gitattributes", "x.py"):
        (checkpoint / name).write_text("not needed")
    (checkpoint / "onnx").mkdir()
    stored = run_import("esm2_mini", "--from", checkpoint)
    names = {path.name for path in Path(stored.path).iterdir()}
    assert names == {"model.yaml", "config.json", "vocab.txt", "tokenizer_config.json", WEIGHTS}


def test_shards_are_stored_with_their_index(
    run_import: Import, mini_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders_module, "MAX_SHARD_BYTES", 1_000_000)
    write_untrained(tmp_path, MINI, seed=1)
    stored = run_import("esm2_mini", "--from", tmp_path)
    assert (Path(stored.path) / INDEX).exists()
    found = embed(Engine(Path(stored.path), MINI, precision="fp32"), SEQUENCES)
    expected = embed(Engine(mini_folder, MINI, precision="fp32"), SEQUENCES)
    assert all(map(np.array_equal, found, expected))


def test_torch_weights_are_stored_as_safetensors(run_import: Import, checkpoint: Path, mini_folder: Path) -> None:
    torch.save(load_file(checkpoint / WEIGHTS), checkpoint / "pytorch_model.bin")
    (checkpoint / WEIGHTS).unlink()
    stored = run_import("esm2_mini", "--from", checkpoint)
    assert not list(Path(stored.path).glob("*.bin"))
    found, expected = load_file(Path(stored.path) / WEIGHTS), load_file(mini_folder / WEIGHTS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_what_is_stored_is_loaded_by_transformers(run_import: Import, mini_folder: Path) -> None:
    from transformers import EsmForMaskedLM

    stored = run_import("esm2_mini", "--from", mini_folder)
    _, report = EsmForMaskedLM.from_pretrained(stored.path, output_loading_info=True)
    assert report["missing_keys"] <= {"esm.rotary_embeddings.inv_freq"}  # computed, no weight
    found = esm2_by_transformers(Path(stored.path), SEQUENCES)
    expected = embed(Engine(Path(stored.path), MINI, precision="fp32"), SEQUENCES)
    assert max(map(worst_relative_error, found, expected)) <= 1e-5  # Measured: 5.8e-7


def test_equal_weights_from_two_places_have_one_tag(run_import: Import, mini_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(mini_folder, tmp_path / "copy"))
    assert run_import("esm2_mini", "--from", mini_folder).tag == run_import("esm2_mini", "--from", copy).tag
    assert len(bentoml.models.list("esm2_mini")) == 1


def test_everyone_may_read_what_is_stored(run_import: Import, mini_folder: Path) -> None:
    before = os.umask(0o077)  # of a person who keeps files to themselves
    try:
        stored = Path(run_import("esm2_mini", "--from", mini_folder).path)
    finally:
        os.umask(before)
    assert stored.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in stored.iterdir()} == {0o644}


# From a fair-esm file


@pytest.fixture
def fair_esm_file(mini_folder: Path, tmp_path: Path) -> Path:
    from tests.models.references import fair_esm_of
    from tests.models.test_conversion import published

    path = tmp_path / "esm2_mini.pt"
    torch.save(published(fair_esm_of(mini_folder, MINI), MINI), path)
    return path


def test_a_fair_esm_file_gives_the_embeddings_of_the_folder(
    run_import: Import, fair_esm_file: Path, mini_folder: Path
) -> None:
    stored = run_import("esm2_mini", "--from", fair_esm_file)
    assert stored.info.metadata["source"] == "esm2_mini.pt"
    assert stored.info.metadata["trained"] is True
    found = embed(Engine(Path(stored.path), MINI, precision="fp32"), SEQUENCES)
    expected = embed(Engine(mini_folder, MINI, precision="fp32"), SEQUENCES)
    assert all(map(np.array_equal, found, expected))


# --if-missing


def test_what_is_there_is_kept_if_asked(run_import: Import, store: Path) -> None:
    first = run_import("esm2_t6_8M", "--random", "--seed", "7")
    before = contents(store)
    assert run_import("esm2_t6_8M", "--random", "--seed", "8", "--if-missing").tag == first.tag
    assert contents(store) == before


def test_what_is_not_there_is_made(run_import: Import) -> None:
    assert run_import("esm2_mini", "--if-missing").tag == run_import("esm2_mini", "--if-missing").tag


# What is refused


def test_an_unknown_name_is_told_the_near_ones(store: Path) -> None:
    assert refused("esm2_t33_650m").startswith(
        "import_model: unknown model 'esm2_t33_650m'; did you mean esm2_t33_650M"
    )
    assert contents(store) == {}


def test_a_seed_and_a_folder_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["esm2_mini", "--random", "--from", "x"])
    assert caught.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [pytest.param(d, id=name) for name, d in DAMAGES.items()],
)
def test_a_bad_folder_is_refused_and_the_store_left_as_it_was(
    run_import: Import, store: Path, checkpoint: Path, damage: Damage
) -> None:
    run_import("esm2_mini")
    before = contents(store)
    damage.spoil(checkpoint)
    assert damage.message in refused("esm2_mini", "--from", checkpoint)
    assert contents(store) == before


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ("", "the tokenizer lacks a residue: 'A'"),
        (
            "<cls>\n<pad>\n<eos>\n<unk>\n" + "\n".join("LAGVSERTIDPKQNFYMHWCXBZO"),
            "the tokenizer lacks a residue: 'U'",
        ),
        pytest.param(
            "\n".join(
                [
                    "<cls>",
                    "<pad>",
                    "<eos>",
                    "<unk>",
                    *(f"<filler_{i}>" for i in range(20)),
                    *"LAGVSERTIDPKQNFYMHWCXBUZO",
                ]
            ),
            "the tokenizer gives id 48, the model has 33 word embeddings",
        ),
    ],
    ids=["empty", "no U", "beyond the weights"],
)
def test_a_bad_tokenizer_is_refused(store: Path, checkpoint: Path, vocabulary: str, message: str) -> None:
    (checkpoint / "vocab.txt").write_text(vocabulary)
    assert message in refused("esm2_mini", "--from", checkpoint)
    assert contents(store) == {}


def test_a_tokenizer_that_cannot_be_read_is_refused(store: Path, checkpoint: Path) -> None:
    (checkpoint / "tokenizer_config.json").write_text("{")
    assert "the tokenizer cannot be read" in refused("esm2_mini", "--from", checkpoint)
    assert contents(store) == {}


def test_weights_of_another_size_are_refused(store: Path, tiny_folder: Path) -> None:
    assert "num_layers is 6, not 12" in refused("esm2_t12_35M", "--from", tiny_folder)
    assert contents(store) == {}


def test_a_place_that_is_not_there_is_named(store: Path, tmp_path: Path) -> None:
    assert "nowhere is missing" in refused("esm2_mini", "--from", tmp_path / "nowhere")
    assert contents(store) == {}


def test_an_empty_folder_is_refused(store: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no model*.safetensors" in refused("esm2_mini", "--from", tmp_path / "empty")
    assert contents(store) == {}


@pytest.mark.parametrize(
    "data",
    [[1], {"x": torch.ones(1)}, {"cfg": {"model": argparse.Namespace()}, "model": {}}],
    ids=["list", "weights", "no sizes"],
)
def test_a_torch_file_of_another_kind_is_refused(store: Path, tmp_path: Path, data: object) -> None:
    torch.save(data, tmp_path / "other.pt")
    assert "is no fair-esm ESM-2 checkpoint" in refused("esm2_mini", "--from", tmp_path / "other.pt")
    assert contents(store) == {}


def test_code_in_a_file_is_not_run(store: Path, tmp_path: Path) -> None:
    from tests.models.test_conversion import Malicious

    torch.save({"cfg": Malicious(tmp_path / "it-ran")}, tmp_path / "malicious.pt")
    assert "is no readable torch file" in refused("esm2_mini", "--from", tmp_path / "malicious.pt")
    assert not (tmp_path / "it-ran").exists()
    assert contents(store) == {}


def test_files_of_both_formats_are_read_from_safetensors() -> None:
    names = ["pytorch_model.bin", "model.safetensors", "config.json", "README.md", "vocab.txt"]
    assert choose_files(names, "there") == ["config.json", "vocab.txt", "model.safetensors"]


# In a process of its own: the hub, and what a person sees


class Script:
    """The script as a person runs it, with a store of its own and a hub of this machine."""

    def __init__(self, home: Path, hub_url: str) -> None:
        self.home = home
        self._environment = os.environ | {
            "BENTOML_HOME": str(home / "bentoml"),
            "HF_HOME": str(home / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": hub_url,
            "NO_PROXY": "127.0.0.1",
        }

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "scripts.import_model", *map(str, arguments)]
        return subprocess.run(
            command, cwd=ROOT, env=self._environment, capture_output=True, text=True, timeout=120, check=False
        )

    def stored(self, done: subprocess.CompletedProcess[str]) -> bentoml.Model:
        """What the printed tag names."""
        assert done.returncode == 0, done.stderr
        from bentoml._internal.models import ModelStore

        found: bentoml.Model = ModelStore(self.home / "bentoml" / "models").get(done.stdout.strip())
        return found

    def num_stored(self) -> int:
        return len(list((self.home / "bentoml" / "models").glob("*/*")))


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture
def script(tmp_path: Path, hub: Hub) -> Script:
    hub.branches.clear()
    hub.requests.clear()
    return Script(tmp_path, hub.url)


def assert_one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("import_model: ")
    assert all(part in line for part in parts), line


def test_a_repository_is_fetched_at_one_commit(
    script: Script, hub: Hub, tiny_folder: Path, tmp_path: Path
) -> None:
    repository = Path(shutil.copytree(tiny_folder, tmp_path / "repository"))
    (repository / "README.md").write_text("not needed")
    (repository / "pytorch_model.bin").write_text("not needed")
    commit = hub.add("facebook/esm2_t6_8M_UR50D", repository)

    stored = script.stored(script.run("esm2_t6_8M"))

    assert stored.info.metadata["source"] == "facebook/esm2_t6_8M_UR50D"
    assert stored.info.metadata["revision"] == commit
    assert stored.info.metadata["trained"] is True
    assert stored.info.labels["trained"] == "true"
    names = {path.name for path in tiny_folder.iterdir()}
    assert {path.name for path in Path(stored.path).iterdir()} == names | {"model.yaml"}
    assert all((Path(stored.path) / name).read_bytes() == (tiny_folder / name).read_bytes() for name in names)
    fetched = {request.rpartition("/resolve/")[2] for request in hub.requests if "/resolve/" in request}
    assert fetched == {f"{commit}/{name}" for name in names}


def test_a_repository_of_torch_weights_at_a_revision_becomes_safetensors(
    script: Script, hub: Hub, tiny_folder: Path, tmp_path: Path
) -> None:
    repository = Path(shutil.copytree(tiny_folder, tmp_path / "repository"))
    torch.save(load_file(repository / WEIGHTS), repository / "pytorch_model.bin")
    (repository / WEIGHTS).unlink()
    hub.add("facebook/esm2_t6_8M_UR50D", tmp_path)  # main holds no model
    commit = hub.add("facebook/esm2_t6_8M_UR50D", repository, branch="v1.0")

    stored = script.stored(script.run("esm2_t6_8M", "--revision", "v1.0"))

    assert stored.info.metadata["revision"] == commit
    found, expected = load_file(Path(stored.path) / WEIGHTS), load_file(tiny_folder / WEIGHTS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_repository_that_is_not_there_is_told_in_one_line(script: Script) -> None:
    assert_one_line(
        script.run("esm2_t6_8M"), "facebook/esm2_t6_8M_UR50D could not be fetched", "--from", "--random"
    )
    assert script.num_stored() == 0


def test_a_revision_that_is_not_there_is_told_in_one_line(script: Script, hub: Hub, tiny_folder: Path) -> None:
    hub.add("facebook/esm2_t6_8M_UR50D", tiny_folder)
    assert_one_line(script.run("esm2_t6_8M", "--revision", "v9"), "could not be fetched", "v9")
    assert script.num_stored() == 0


def test_a_hub_that_does_not_answer_is_told_in_one_line(tmp_path: Path) -> None:
    script = Script(tmp_path, f"http://127.0.0.1:{free_port()}")
    assert_one_line(script.run("esm2_t6_8M"), "could not be fetched from the hub", "--from", "--random")
    assert script.num_stored() == 0


def test_a_bad_checkpoint_on_the_hub_is_told_in_one_line(
    script: Script, hub: Hub, tiny_folder: Path, tmp_path: Path
) -> None:
    repository = Path(shutil.copytree(tiny_folder, tmp_path / "repository"))
    change_weights(repository, lambda weights: weights.pop("esm.encoder.emb_layer_norm_after.weight"))
    hub.add("facebook/esm2_t6_8M_UR50D", repository)
    assert_one_line(script.run("esm2_t6_8M"), "lacks the weight 'encoder.emb_layer_norm_after.weight'")
    assert script.num_stored() == 0


def test_an_unknown_name_is_told_in_one_line(tmp_path: Path) -> None:
    script = Script(tmp_path, "http://127.0.0.1:1")
    assert_one_line(script.run("esm2_minni"), "unknown model 'esm2_minni'; did you mean esm2_mini")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("esm2_mini", "--seed", "3"), "--seed goes with --random"),
        (("esm2_mini", "--random", "--revision", "main"), "--revision is of the hub"),
        (("esm2_mini", "--from", "here", "--revision", "main"), "--revision is of the hub"),
        (("esm2_mini", "--random", "--untrained"), "--untrained goes with --from"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_bad_folder_is_named_as_it_was_given(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"")
    assert f"{checkpoint}/model.safetensors is no safetensors file" in refused("esm2_mini", "--from", checkpoint)
