"""The peers by name: how each is started, asked and understood."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from scripts.benchmarks.clients import Call
from scripts.local_service import free_port
from scripts.peers import infinity
from scripts.peers.encoder import FOLDER_VARIABLE
from scripts.peers.processes import running


@dataclass(frozen=True)
class Peer:
    """A running peer. pid: of the first of its processes. key: of the sequences in a request's JSON.

    decode: (B, D) of a reply's body.
    """

    pid: int
    url: str
    path: str
    key: str
    decode: Callable[[bytes], np.ndarray]

    def call(self, sequences: Sequence[str]) -> Call:
        body = json.dumps({self.key: list(sequences)}).encode()
        return Call(self.path, body, {"content-type": "application/json"}, sum(map(len, sequences)))


@contextlib.contextmanager
def _fastapi(model: Path, scratch: Path) -> Iterator[Peer]:
    port, app = free_port(), "scripts.peers.fastapi_service:create_app"
    command = [sys.executable, "-m", "uvicorn", "--factory", app, "--port", str(port), "--log-level", "warning"]
    url = f"http://127.0.0.1:{port}"
    with running(command, f"{url}/readyz", {FOLDER_VARIABLE: str(model)}, scratch / "fastapi.log") as pid:
        yield Peer(pid, url, "/embed", "sequences", lambda body: np.load(io.BytesIO(body), allow_pickle=False))


@contextlib.contextmanager
def _bentoml(model: Path, scratch: Path) -> Iterator[Peer]:
    port, service = free_port(), "scripts.peers.bentoml_service:TransformersService"
    command = [str(Path(sys.executable).with_name("bentoml")), "serve", service]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with running(command, f"{url}/readyz", {FOLDER_VARIABLE: str(model)}, scratch / "bentoml.log") as pid:
        yield Peer(pid, url, "/embed", "sequences", lambda body: np.array(json.loads(body), np.float32))


@contextlib.contextmanager
def _infinity(dtype: str, model: Path, scratch: Path) -> Iterator[Peer]:
    port, folder = free_port(), scratch / "infinity_model"
    infinity.write_folder(model, folder)
    url = f"http://127.0.0.1:{port}"
    command = infinity.command(infinity.install(), folder, port, dtype)
    with running(command, f"{url}/health", infinity.ENVIRONMENT, scratch / "infinity.log") as pid:
        yield Peer(pid, url, "/embeddings", "input", infinity.decode)


PEERS: Mapping[str, Callable[[Path, Path], AbstractContextManager[Peer]]] = {
    "fastapi": _fastapi,
    "bentoml": _bentoml,
    "infinity": partial(_infinity, "bfloat16"),
    "infinity-fp32": partial(_infinity, "float32"),
}


def choose_peers(names: str) -> list[str]:
    """Of `--compare`: comma-separated; none for an empty text.

    Raises:
        SystemExit: for a name that is not known.
    """
    chosen = [name for name in names.split(",") if name]
    for name in chosen:
        if name not in PEERS:
            raise SystemExit(f"--compare: {name} is none of {', '.join(PEERS)}")
    return chosen
