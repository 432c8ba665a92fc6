"""The service with models of every kind, in processes of its own: two of proteins, four of texts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from scripts import import_model
from scripts.local_service import LocalService
from tests.models.text.checkpoints import MINILM, write

# Names of the hub, as the clients of the other systems have them
EMBEDDER, RERANKER, CLASSIFIER, SECOND_CLASSIFIER = (
    "BAAI/bge-small-en-v1.5",
    "BAAI/bge-reranker-base",
    "wandb/WeaveFluencyScorerV1",
    "wandb/WeaveBiasScorerV1",
)
SOURCES = {RERANKER: "cross", CLASSIFIER: "modernbert", SECOND_CLASSIFIER: "deberta"}


@dataclass(frozen=True)
class TextService:
    """The running service, a client of it, and where each text model came from."""

    service: LocalService
    http: httpx.Client
    folders: dict[str, Path]

    @property
    def url(self) -> str:
        return self.service.url


@contextmanager
def serving_texts(folder: Path, **settings: str) -> Iterator[TextService]:
    """The service while this is open."""
    import_model.main(["esm2_mini"])
    import_model.main(["prot_t5_mini"])
    folders = {name: write(maker, folder / maker) for name, maker in SOURCES.items()}
    folders = {EMBEDDER: MINILM, **folders}
    environment = {
        "MODELS": "esm2_mini,prot_t5_mini",
        "TEXT_MODELS": ",".join(f"{name}={source}" for name, source in folders.items()),
        "PRECISION": "fp32",
        "GATEWAY_WORKERS": "1",
        **settings,
    }
    with (
        LocalService(folder / "data", environment) as service,
        httpx.Client(base_url=service.url, timeout=120) as http,
    ):
        yield TextService(service, http, folders)
