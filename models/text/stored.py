"""Text models into the model store: from a local folder or the hub, as their files are."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from models import hub, store
from models.configs import CheckpointError
from models.store import StoredModel
from models.text.model import KINDS, TextModel, kind_of, store_name

_KEPT_SUFFIXES = (".json", ".txt", ".model", ".spm", ".codes", ".jinja", ".safetensors")
_TORCH = "pytorch_model"  # how files of weights in torch's own format begin
_ADVICE = "fetch it elsewhere and name the folder"


def resolve(name: str, source: str, revision: str | None = None) -> StoredModel:
    """The stored model behind `name=source`: a folder, a tag of the store, or a name of the hub.

    A model of the hub that is in the store under this name is taken from there, unless a revision is asked for.

    Raises:
        CheckpointError: there is none, or it is no text model.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _store(name, folder, source=folder.resolve().name, revision="local")
    if (tagged := store.find(source)) is not None:
        return tagged
    kept = store.find(store_name(name))
    if kept is not None and revision is None and kept.info.metadata.get("source") == source:
        return kept
    if source.startswith(("/", ".", "~")) or ":" in source:
        raise CheckpointError(f"{source} is neither a folder nor in the model store")
    with tempfile.TemporaryDirectory(prefix="fetch-model-") as scratch:
        fetched = Path(scratch)
        commit = hub.fetch(source, revision, choose_files, fetched, _ADVICE)
        return _store(name, fetched, source, commit)


def row_of(name: str, stored: StoredModel) -> TextModel:
    """What is served under this name."""
    noted = stored.info.metadata.get("kind")
    kind = next((kind for kind in KINDS if kind == noted), None)
    return TextModel(name, kind or kind_of(Path(stored.path)))


def choose_files(names: Iterable[str]) -> list[str]:
    """Configuration, tokenizer and weights, in their folders; no code, no weights of other frameworks.

    torch's own format is taken only where no safetensors lie beside it.
    """
    paths = [PurePosixPath(name) for name in names]
    safe = {path.parent for path in paths if path.suffix == ".safetensors"}
    return sorted(
        str(path)
        for path in paths
        if not any(part.startswith(".") or part in ("onnx", "openvino", "coreml") for part in path.parts)
        and (
            path.suffix in _KEPT_SUFFIXES
            or (path.suffix == ".bin" and path.name.startswith(_TORCH) and path.parent not in safe)
        )
    )


def _store(name: str, folder: Path, source: str, revision: str) -> StoredModel:
    try:
        kind = kind_of(folder)
    except CheckpointError as error:  # name what people know, not a folder that is gone behind this
        raise CheckpointError(str(error).replace(str(folder), source)) from None
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    with tempfile.TemporaryDirectory(prefix="import-model-") as scratch:
        for kept in choose_files(names):
            target = Path(scratch) / kept
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / kept, target)
        _convert(Path(scratch))
        metadata = {"name": name, "kind": kind, "source": source, "revision": revision, "trained": True}
        return store.put(Path(scratch), store_name(name), metadata, {"family": "text", "kind": kind})


def _convert(folder: Path) -> None:
    """Weights in torch's own format into safetensors, in every part of a model; no code in them is run."""
    found = {path.parent for path in folder.rglob(f"{_TORCH}*.bin")}
    if not found:
        return
    from models.conversion import convert_torch_weights

    for part in sorted(found):
        convert_torch_weights(part)
