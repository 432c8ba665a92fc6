"""The BentoML model store: what is found there, and how folders get in, under a version that is their digest."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bentoml
import tqdm
from bentoml.exceptions import BentoMLException, NotFound
from bentoml.models import ModelContext

from models.configs import CheckpointError

VERSION_DIGITS = 16

StoredModel = bentoml.Model


def find(tag: str) -> StoredModel | None:
    """The stored model of `name`, which is its latest version, or `name:version`; None if there is none."""
    try:
        return bentoml.models.get(tag)
    except (NotFound, BentoMLException, ValueError):  # the latter two of a text that cannot be a tag
        return None


def put(folder: Path, name: str, metadata: Mapping[str, Any], labels: Mapping[str, str]) -> StoredModel:
    """Moves a folder's content into the store; `metadata["trained"]` says whether anybody trained it.

    Raises:
        CheckpointError: the same content is there and was said to be trained where this is not, or the other
            way round.
    """
    digest = digest_of(folder)
    tag = bentoml.Tag(name, digest[:VERSION_DIGITS])
    if (stored := find(str(tag))) is not None:
        if stored.info.metadata["trained"] is not metadata["trained"]:
            word = "trained" if stored.info.metadata["trained"] else "untrained"
            raise CheckpointError(f"{tag} is in the store as {word}; delete it there first")
        return stored
    context = ModelContext(framework_name="torch", framework_versions={})
    known = {**metadata, "digest": f"sha256:{digest}"}
    with bentoml.models.create(tag, context=context, labels=dict(labels), metadata=known) as entry:
        for path in folder.iterdir():
            shutil.move(path, entry.path)
    stored = bentoml.models.get(tag)
    kept = Path(stored.path)
    for path in (kept, *kept.rglob("*")):  # made by mkdtemp, for its owner alone; a container runs as anybody
        path.chmod(0o755 if path.is_dir() else 0o644)
    return stored


def digest_of(folder: Path) -> str:
    """sha256 over the names and contents of the files in a folder."""
    digest = hashlib.sha256()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with progress(sum(path.stat().st_size for path in files), "digest") as bar:
        for path in files:
            name = path.relative_to(folder).as_posix()
            digest.update(f"{name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
                    bar.update(len(block))
    return digest.hexdigest()


def progress(total: int | None, what: str) -> tqdm.tqdm[Any]:
    """A bar of bytes, where somebody looks."""
    return tqdm.tqdm(total=total, desc=what, unit="B", unit_scale=True, leave=False, disable=None)
