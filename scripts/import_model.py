"""Puts a model into the BentoML model store, as a standard Hugging Face folder, and prints its tag.

    python -m scripts.import_model esm2_t33_650M                      from the hub
    python -m scripts.import_model esm2_t33_650M --from FOLDER        a Hugging Face folder
    python -m scripts.import_model esm2_t33_650M --from FILE.pt       a fair-esm checkpoint
    python -m scripts.import_model esm2_t33_650M --random --seed 7    untrained weights of that architecture
    python -m scripts.import_model minilm --text FOLDER               a text model, under a name of your choice
    python -m scripts.import_model minilm --text sentence-transformers/all-MiniLM-L6-v2    the same from the hub

The version in the tag is a digest of the content: the same weights get the same tag.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bentoml

from models import checkpoints, hub, store
from models.catalogue import CATALOGUE, Model, UnknownModel, find
from models.configs import CheckpointError, read_config
from models.text import stored as text_store

WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json")
TORCH_SUFFIXES = (".bin", ".bin.index.json")
KEPT_FILES = (
    *("config.json", "vocab.txt", "spiece.model", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)


@dataclass(frozen=True)
class Origin:
    """Where weights came from, as it is kept in the model store."""

    source: str
    revision: str
    is_trained: bool


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    try:
        if options.text is not None:
            print(text_store.resolve(options.name, options.text, options.revision).tag)
        else:
            print(import_model(find(options.name), options))
    except (CheckpointError, UnknownModel, OSError, ValueError) as error:
        sys.exit(f"import_model: {' '.join(str(error).split())}")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.import_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help=f"one of {', '.join(CATALOGUE)}, or with --text any")
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("--from", dest="path", type=Path, help="a Hugging Face folder or a fair-esm .pt")
    origin.add_argument("--random", action="store_true", help="untrained weights, labelled so")
    origin.add_argument("--text", metavar="SOURCE", help="a text model: folder, or name on the hub")
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
        kept = store.find(model.store_name)
        if kept is not None:
            return kept.tag
    with tempfile.TemporaryDirectory(prefix="import-model-") as name:
        folder = Path(name)
        try:
            origin = _fill(folder, model, options)
            checkpoints.verify(folder, model)
            _try_tokenizer(folder, model)
        except CheckpointError as error:  # name what people know, not the folder that is gone behind this
            raise CheckpointError(str(error).replace(name, str(options.path or model.source))) from None
        return store_protein_model(folder, model, origin)


def _fill(folder: Path, model: Model, options: argparse.Namespace) -> Origin:
    """Brings the weights into the folder, in the standard format."""
    from models import conversion, untrained

    if options.random or (model.source is None and options.path is None):
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
    assert model.source is not None
    source = model.source
    advice = "fetch it elsewhere and use --from, or --random for untrained weights"
    commit = hub.fetch(source, revision, lambda names: choose_files(names, source), folder, advice)
    _convert(folder)
    return Origin(source, commit, is_trained=True)


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


def store_protein_model(folder: Path, model: Model, origin: Origin) -> bentoml.Tag:
    """A checked folder into the model store, under a version that is its digest."""
    metadata: dict[str, Any] = {
        "name": model.name,
        "source": origin.source,
        "revision": origin.revision,
        "dim": model.dim,
        "num_layers": model.num_layers,
        "trained": origin.is_trained,
    }
    labels = {"family": model.family, "trained": str(origin.is_trained).lower()}
    return store.put(folder, model.store_name, metadata, labels).tag


def _show_progress(weights: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    with store.progress(None, "weights") as bar:
        for name, tensor in weights:
            yield name, tensor
            bar.update(tensor.nbytes)


if __name__ == "__main__":
    main()
