"""Puts a model into the BentoML model store, as a standard Hugging Face folder, and prints its tag.

    python -m scripts.import_model esm2_t33_650M                      from the hub
    python -m scripts.import_model esm2_t33_650M --from FOLDER        a Hugging Face folder
    python -m scripts.import_model esm2_t33_650M --from FILE.pt       a fair-esm checkpoint
    python -m scripts.import_model esm2_t33_650M --random --seed 7    untrained weights of that architecture

The version in the tag is a digest of the content: the same weights get the same tag.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bentoml
import tqdm
from bentoml.exceptions import NotFound
from bentoml.models import ModelContext

from models import checkpoints
from models.catalogue import CATALOGUE, MINI, Model, UnknownModel, find
from models.configs import CheckpointError, read_config

WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json")
TORCH_SUFFIXES = (".bin", ".bin.index.json")
KEPT_FILES = (
    *("config.json", "vocab.txt", "spiece.model", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)
VERSION_DIGITS = 16


@dataclass(frozen=True)
class Origin:
    """Where weights came from, as it is kept in the model store."""

    source: str
    revision: str
    is_trained: bool


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    try:
        model = find(options.name)
        print(import_model(model, options))
    except (CheckpointError, UnknownModel, OSError, ValueError) as error:
        sys.exit(f"import_model: {' '.join(str(error).split())}")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.import_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help=f"one of {', '.join(CATALOGUE)}")
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("--from", dest="path", type=Path, help="a Hugging Face folder or a fair-esm .pt")
    origin.add_argument("--random", action="store_true", help="untrained weights, labelled so")
    parser.add_argument("--revision", help="branch, tag or commit on the hub (default: main)")
    parser.add_argument("--seed", type=int, help="of --random (default: 0)")
    parser.add_argument("--untrained", action="store_true", help="say that the weights of --from are untrained")
    parser.add_argument("--if-missing", action="store_true", help="keep what the store has under this name")
    options = parser.parse_args(arguments)
    if options.revision is not None and (options.random or options.path is not None):
        parser.error("--revision is of the hub; it does not go with --from or --random")
    if options.seed is not None and not options.random:
        parser.error("--seed goes with --random")
    if options.untrained and options.path is None:
        parser.error("--untrained goes with --from")
    return options


def import_model(model: Model, options: argparse.Namespace) -> bentoml.Tag:
    """Fetches or makes the weights, checks them, stores them.

    Raises:
        CheckpointError, OSError, ValueError: with the reason in one line; the store is left as it was.
    """
    if options.if_missing:
        try:
            return bentoml.models.get(model.store_name).tag
        except NotFound:
            pass
    with tempfile.TemporaryDirectory(prefix="import-model-") as name:
        folder = Path(name)
        try:
            origin = _fill(folder, model, options)
            checkpoints.verify(folder, model)
            _try_tokenizer(folder, model)
        except CheckpointError as error:  # name what people know, not the folder that is gone behind this
            raise CheckpointError(str(error).replace(name, str(options.path or model.source))) from None
        return store(folder, model, origin)


def _fill(folder: Path, model: Model, options: argparse.Namespace) -> Origin:
    """Brings the weights into the folder, in the standard format."""
    from models import conversion, untrained

    if options.random or (model is MINI and options.path is None):
        seed = options.seed or 0
        untrained.write_untrained(folder, model, seed, _show_progress)
        return Origin("untrained", f"seed {seed}", is_trained=False)
    if options.path is None:
        return _download(folder, model, options.revision)
    source = options.path.resolve()
    if source.is_dir():
        names = [path.name for path in source.iterdir()]
        for kept in choose_files(names, str(source)):
            shutil.copyfile(source / kept, folder / kept)
        _convert(folder)
    else:
        conversion.convert_fair_esm(source, folder)
    return Origin(source.name, "local", is_trained=not options.untrained)


def _download(folder: Path, model: Model, revision: str | None) -> Origin:
    """The model's files from the hub, at one commit."""
    from huggingface_hub import HfApi, hf_hub_download

    assert model.source is not None
    try:
        info = HfApi().model_info(model.source, revision=revision)
        assert info.sha is not None
        names = [file.rfilename for file in info.siblings or []]
        for kept in choose_files(names, model.source):
            hf_hub_download(model.source, kept, revision=info.sha, local_dir=folder)
    except CheckpointError:
        raise
    except Exception as error:  # of whichever HTTP library the hub's client was built with
        raise CheckpointError(
            f"{model.source} could not be fetched from the hub ({error}); "
            "fetch it elsewhere and use --from, or --random for untrained weights"
        ) from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    _convert(folder)
    return Origin(model.source, info.sha, is_trained=True)


def choose_files(names: Iterable[str], where: str) -> list[str]:
    """The files of a Hugging Face folder that an encoder needs; safetensors before torch's own format."""
    names = sorted(names)
    for suffixes in (WEIGHT_SUFFIXES, TORCH_SUFFIXES):
        weights = [n for n in names if n.endswith(suffixes) and n.startswith(("model", "pytorch_model"))]
        if weights:
            return [name for name in names if name in KEPT_FILES] + weights
    raise CheckpointError(f"{where} holds no model*.safetensors and no pytorch_model*.bin")


def _convert(folder: Path) -> None:
    from models import conversion

    if any(path.name.endswith(TORCH_SUFFIXES) for path in folder.iterdir()):
        conversion.convert_torch_weights(folder)


def _try_tokenizer(folder: Path, model: Model) -> None:
    """A tokenizer that cannot be read, or that lacks a residue, is found now and not by a request."""
    from models.tokens import UnknownResidue, residue_table

    try:
        vocab_size = read_config(folder, model.family).vocab_size
        residue_table(folder, model, vocab_size).encode("".join(sorted(model.alphabet)))
    except CheckpointError:
        raise
    except UnknownResidue as error:
        raise CheckpointError(f"the tokenizer lacks a residue: {error}") from None
    except Exception as error:
        raise CheckpointError(f"the tokenizer cannot be read: {error}") from None


def store(folder: Path, model: Model, origin: Origin) -> bentoml.Tag:
    """A checked folder into the model store, under a version that is its digest."""
    digest = _digest(folder)
    tag = bentoml.Tag(model.store_name, digest[:VERSION_DIGITS])
    try:
        stored = bentoml.models.get(tag)
    except NotFound:
        pass
    else:
        if stored.info.metadata["trained"] is not origin.is_trained:
            word = "trained" if stored.info.metadata["trained"] else "untrained"
            raise CheckpointError(f"{tag} is in the store as {word}; delete it there first")
        return stored.tag
    metadata: dict[str, Any] = {
        "name": model.name,
        "source": origin.source,
        "revision": origin.revision,
        "digest": f"sha256:{digest}",
        "dim": model.dim,
        "num_layers": model.num_layers,
        "trained": origin.is_trained,
    }
    labels = {"family": model.family, "trained": str(origin.is_trained).lower()}
    context = ModelContext(framework_name="torch", framework_versions={})
    with bentoml.models.create(tag, context=context, labels=labels, metadata=metadata) as entry:
        for path in folder.iterdir():
            shutil.move(path, entry.path)
    kept = Path(bentoml.models.get(tag).path)
    kept.chmod(0o755)  # made by mkdtemp, for its owner alone; a container runs as anybody
    for path in kept.iterdir():
        path.chmod(0o644)
    return tag


def _digest(folder: Path) -> str:
    """sha256 over the names and contents of a folder's files."""
    digest = hashlib.sha256()
    files = sorted(path for path in folder.iterdir() if path.is_file())
    with _bar(sum(path.stat().st_size for path in files), "digest") as bar:
        for path in files:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
                    bar.update(len(block))
    return digest.hexdigest()


def _show_progress(weights: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    with _bar(None, "weights") as bar:
        for name, tensor in weights:
            yield name, tensor
            bar.update(tensor.nbytes)


def _bar(total: int | None, what: str) -> tqdm.tqdm[Any]:
    return tqdm.tqdm(total=total, desc=what, unit="B", unit_scale=True, leave=False, disable=None)


if __name__ == "__main__":
    main()
