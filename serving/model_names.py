"""Names of models in settings: which there are, of what form they are, and with which a Bento was built."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from models.catalogue import CATALOGUE, MINI, UnknownModel, find

NO_MODELS = "none"  # as MODELS: no protein model
# Keys beside the names of models in the reply of /models
RESERVED_NAMES = ("embedding_models", "reranking_models", "classification_models")
_ENTRY = re.compile(r"\w+(:[\w.-]+)?")
_TEXT_NAME = re.compile(r"[A-Za-z0-9][\w./-]*")


def _recorded(name: str) -> tuple[str, ...]:
    """What this Bento was built with, in its versions; nothing outside a Bento."""
    manifest = Path(__file__).parents[2] / "bento.yaml"  # a Bento holds the project in src/
    if not manifest.exists():
        return ()
    variables = yaml.safe_load(manifest.read_text()).get("envs", [])
    values = {variable["name"]: variable["value"] for variable in variables}
    return tuple(entry for entry in values.get(name, "").split(",") if entry)


def default_models() -> tuple[str, ...]:
    """The models that this Bento was built with; outside a Bento, the embedded one."""
    return _recorded("MODELS") or (MINI.name,)


def default_text_models() -> tuple[str, ...]:
    """The text models that this Bento was built with; outside a Bento, none."""
    return _recorded("TEXT_MODELS")


def check_protein_models(entries: Sequence[str]) -> None:
    """
    Raises:
        ValueError: an entry is not `name` or `name:version`, is there twice, or its name is not in the catalogue.
    """
    for entry in entries:
        if not _ENTRY.fullmatch(entry):
            raise ValueError(f"{entry!r} is not of the form name or name:version")
    for entry in entries:
        try:
            find(entry.partition(":")[0])
        except UnknownModel as error:
            known = f"; the catalogue has {', '.join(CATALOGUE)}" if error.near else ""
            raise ValueError(f"{error}{known}") from None
    if len(set(entries)) < len(entries):
        raise ValueError("names a model twice")


def check_text_models(entries: Sequence[str]) -> None:
    """
    Raises:
        ValueError: a name is none, is taken, or is too much like another.
    """
    names = [text_entry(entry)[0] for entry in entries]
    for name in names:
        check_text_name(name)
    if len({_key_of(name) for name in names}) < len(names):
        raise ValueError("names two models alike")


def _key_of(name: str) -> str:
    """What names must differ in: stores know no case, names of runners letters and digits alone."""
    return re.sub(r"[^a-z0-9]", "_", name.lower())


def check_text_name(name: str) -> None:
    """
    Raises:
        ValueError: it is no name, or that of something else.
    """
    if not _TEXT_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name; write name=source, the name of letters, digits and /._-")
    if _key_of(name) in {_key_of(taken) for taken in (*CATALOGUE, *RESERVED_NAMES)}:
        raise ValueError(f"{name!r} means something else already; choose another name")


def text_entry(entry: str) -> tuple[str, str]:
    """Name and source of an entry of TEXT_MODELS; a source alone is its own name."""
    name, equals, source = entry.partition("=")
    return name, source if equals else name
