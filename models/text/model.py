"""A text model that a deployment names, and what its folder says it is for. No torch: the gateway reads this."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from models.configs import CheckpointError

Kind = Literal["embedding", "classification", "reranking"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ST_CONFIG, ST_MODULES, CONFIG = "config_sentence_transformers.json", "modules.json", "config.json"

_DESCRIPTIONS: Mapping[Kind, str] = {
    "embedding": "text embedding model (sentence-transformers)",
    "classification": "text classifier",
    "reranking": "cross-encoder: scores a document for a query",
}


@dataclass(frozen=True)
class TextModel:
    """`name` is what requests call it: any of letters, digits and `/._-`, as names of the hub."""

    name: str
    kind: Kind

    @property
    def store_name(self) -> str:
        return store_name(self.name)

    @property
    def runner(self) -> str:
        """Name of the BentoML service that runs this model."""
        return f"runner_{re.sub(r'[^A-Za-z0-9]', '_', self.name)}"

    @property
    def description(self) -> str:
        return _DESCRIPTIONS[self.kind]


def store_name(name: str) -> str:
    """Name in the BentoML model store, which knows lower case and no slash."""
    return name.lower().replace("/", "--")


def kind_of(folder: Path) -> Kind:
    """What a model in the formats of sentence-transformers or transformers is for, by its configuration.

    Raises:
        CheckpointError: it is for something else, or there is no configuration.
    """
    saved_as = _read(folder, ST_CONFIG).get("model_type", "SentenceTransformer")
    if saved_as not in ("SentenceTransformer", "CrossEncoder"):
        raise CheckpointError(f"{folder} is a {saved_as}; served are bi-encoders, cross-encoders and classifiers")
    if (folder / ST_MODULES).exists() and saved_as == "SentenceTransformer":
        return "embedding"
    config = _read(folder, CONFIG)
    if not config:
        raise CheckpointError(f"{folder} holds neither {ST_MODULES} nor {CONFIG}")
    architecture = str((config.get("architectures") or ["?"])[0])
    if architecture.endswith("ForSequenceClassification"):
        num_labels = len(config.get("id2label") or ()) or config.get("num_labels", 2)
        return "reranking" if num_labels == 1 else "classification"
    if re.search(r"For(?!MaskedLM|PreTraining)\w+$", architecture):
        raise CheckpointError(f"{folder} is a {architecture}, which neither embeds nor classifies texts")
    return "embedding"


def _read(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object; an empty one where there is no file."""
    try:
        found = json.loads((folder / name).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / name} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{folder / name} holds no JSON object")
    return found
