"""The service under load: started for a benchmark, or one that runs already; what it is asked."""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from scripts.benchmarks.clients import Call
from scripts.local_service import LocalService
from scripts.npz import read_npz
from serving.outputs import NPZ_MEDIA_TYPE

SERVICE = "service:ProteinEmbeddingService"


@dataclass(frozen=True)
class Served:
    """A running service and a model of it. pid: of its first process; None where somebody else started it."""

    url: str
    model: str
    pid: int | None

    def clear_cache(self) -> None:
        """Of embeddings of this model alone."""
        pattern = {"pattern": f"{self.model}_*"}
        httpx.post(f"{self.url}/embeddings/cache/clear", params=pattern, timeout=60).raise_for_status()

    def num_hits(self) -> int:
        """Sequences that were found in the cache, ever."""
        reply = httpx.get(f"{self.url}/embeddings/cache/stats", timeout=60)
        hits: int = reply.raise_for_status().json()["stats"]["cache_hits"]
        return hits

    def call(
        self, sequences: Sequence[str], *, is_pooled: bool = True, is_npz: bool = False, dtype: str = "float16"
    ) -> Call:
        """A compute request. is_npz: the reply is the npz itself, else a summary with a link to it."""
        headers = {"content-type": "application/json"} | ({"accept": NPZ_MEDIA_TYPE} if is_npz else {})
        body = json.dumps({"sequences": list(sequences), "pooled": is_pooled, "dtype": dtype}).encode()
        return Call(f"/embeddings/compute/{self.model}", body, headers, sum(map(len, sequences)))


def read_embeddings(body: bytes) -> list[np.ndarray]:
    """The embeddings of a reply, in the order of the request."""
    arrays = read_npz(body)
    return [arrays[f"embedding_{index}"] for index in range(int(arrays["sequence_count"]))]


def add_arguments(parser: argparse.ArgumentParser, model: str = "esm2_t12_35M") -> None:
    """What every subject with a running service takes."""
    parser.add_argument("--model", default=model, help="in the model store; see scripts.import_model")
    parser.add_argument("--url", help="of a service that runs already; its cache of the model is cleared")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the service that is started"
    )
    parser.add_argument("--fasta", type=Path, help="default: a seeded sample with Swiss-Prot's distribution")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the JSON line there too")


def parse_settings(pairs: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE, each.

    Raises:
        SystemExit: one has no name or no `=`.
    """
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise SystemExit(f"--set: {pair!r} is not NAME=VALUE")
        settings[name] = value
    return settings


@contextlib.contextmanager
def serving(
    options: argparse.Namespace, settings: Mapping[str, str] | None = None, target: str = SERVICE
) -> Iterator[Served]:
    """The service with the options of `add_arguments`, in a data folder of its own; ended after the `with`.

    settings: of the subject; `--set` overrides them, and neither reaches a service at `--url`.
    """
    if options.url is not None:
        yield Served(options.url.rstrip("/"), options.model, None)
        return
    environment = {"MODELS": options.model, "LOG_LEVEL": "WARNING", **(settings or {})}
    environment |= parse_settings(options.set)
    with (
        tempfile.TemporaryDirectory(prefix="pes-benchmark-", ignore_cleanup_errors=True) as folder,
        LocalService(Path(folder), environment, target) as service,
    ):
        assert service.process is not None
        yield Served(service.url, options.model, service.process.pid)
