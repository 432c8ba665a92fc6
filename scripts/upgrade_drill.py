"""A new version of a model comes, is tried beside the old one, takes over, and goes again; all of it under load.

    python -m scripts.upgrade_drill [--seconds 10] [--clients 4]

Two services share one Redis, as two deployments behind one ingress do. Clients never stop asking. Every reply must
come, name a version that was asked, and hold that version's numbers: an answer of the other one would be stale.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from models.catalogue import MINI, STANDARD_RESIDUES
from models.engine import Engine, Item
from scripts.local_service import ROOT, LocalService
from scripts.npz import read_npz
from serving.redis import EmbeddedRedis

NUM_PROTEINS = 400  # of which the clients ask for some again and again: hits and misses
PROTEINS_A_REQUEST = 4
TOLERANCE = 1e-5  # fp32, whatever the batch
OUT_OF_ROTATION_S = 2.0  # between a service's last new request and its SIGTERM; a preStop hook sleeps as long
CANARY_SHARE = 0.2
Expected = Mapping[str, np.ndarray]  # by version: pooled embeddings of all proteins, (NUM_PROTEINS, dim)


@dataclass(frozen=True)
class Target:
    """Where a share of the requests goes: a model's name as clients write it, and the version that must answer."""

    url: str
    model: str
    version: str
    share: float = 1.0


@dataclass
class Load:
    """Clients that ask all the time, wherever `targets` says now; counted by phase."""

    proteins: Sequence[str]
    expected: Expected
    phase: str = ""
    targets: Sequence[Target] = ()
    answered: Counter[tuple[str, str]] = field(default_factory=Counter)
    num_cached: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._is_over = threading.Event()

    @contextlib.contextmanager
    def running(self, num_clients: int) -> Iterator[None]:
        """While this is open, so many clients ask."""
        with ThreadPoolExecutor(num_clients) as pool:
            clients = [pool.submit(self._ask_for_ever, seed) for seed in range(num_clients)]
            try:
                yield
            finally:
                self._is_over.set()
            for client in clients:
                client.result()

    def direct(self, phase: str, targets: Sequence[Target]) -> None:
        """From now on requests go there."""
        with self._lock:
            self.phase, self.targets = phase, targets

    def _ask_for_ever(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        with httpx.Client(timeout=60) as http:
            while not self._is_over.is_set():
                with self._lock:
                    phase, targets = self.phase, self.targets
                target = targets[draw.choice(len(targets), p=[target.share for target in targets])]
                places = draw.choice(len(self.proteins), PROTEINS_A_REQUEST, replace=False).tolist()
                num_cached, fault = self._ask(http, target, places)
                with self._lock:
                    self.answered[phase, target.version] += fault is None
                    self.num_cached[phase] += num_cached
                    if fault is not None:
                        self.faults.append(f"{phase}: {target.model} at {target.url}: {fault}")

    def _ask(self, http: httpx.Client, target: Target, places: list[int]) -> tuple[int, str | None]:
        """How many came from the cache, and what is wrong with the reply; None where it is as it must be."""
        url = f"{target.url}/embeddings/compute/{target.model}"
        body = {"sequences": [self.proteins[place] for place in places], "dtype": "float32"}
        try:
            reply = http.post(url, json=body)
            if reply.status_code != 200:
                return 0, f"{reply.status_code} {reply.text[:200]}"
            answer = reply.json()
            file = http.get(target.url + answer["download_link"])
        except httpx.HTTPError as error:
            return 0, repr(error)
        num_cached = sum(result["cached"] for result in answer["results"])
        tag = answer["model_info"]["tag"]
        if tag.partition(":")[2] != target.version:
            return num_cached, f"{tag} answered"
        if file.status_code != 200:
            return num_cached, f"{file.status_code} for the file"
        arrays = read_npz(file.content)
        found = np.stack([arrays[f"embedding_{i}"] for i in range(len(places))])
        difference = float(np.abs(found - self.expected[target.version][places]).max())
        return num_cached, None if difference <= TOLERANCE else f"off by {difference:g}: stale, or wrong"


def drill(folder: Path, seconds: float, num_clients: int) -> Load:
    """Each of the four phases under load, for so many seconds and while services start and end."""
    store = folder / "store"
    old, new = import_version(store, seed=0), import_version(store, seed=1)
    proteins = random_proteins(NUM_PROTEINS)
    load = Load(proteins, {version: embeddings_of(store, version, proteins) for version in (old, new)})
    redis = EmbeddedRedis(folder, max_memory_mb=256)
    shared = {
        "BENTOML_HOME": str(store),
        "REDIS_URL": f"unix://{redis.socket}",
        "PRECISION": "fp32",
        "GATEWAY_WORKERS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }

    def service(name: str, *versions: str) -> LocalService:
        models = ",".join(f"{MINI.name}:{version}" for version in versions)
        return LocalService(folder / name, {**shared, "MODELS": models})

    def end(service: LocalService) -> None:
        """As a rollout does: no new requests, a pause, SIGTERM."""
        time.sleep(OUT_OF_ROTATION_S)
        if status := service.stop():
            load.faults.append(f"{load.phase}: the service that was told to end exited with {status}")

    with contextlib.ExitStack() as stack:
        redis.start()
        stack.callback(redis.stop)
        before = stack.enter_context(service("old", old))
        load.direct("old", [Target(before.url, MINI.name, old)])
        with load.running(num_clients):
            time.sleep(seconds)

            both = stack.enter_context(service("both", new, old))
            load.direct(
                "canary",
                [
                    Target(before.url, MINI.name, old, 1 - CANARY_SHARE),
                    Target(both.url, MINI.name, new, CANARY_SHARE / 2),
                    Target(both.url, f"{MINI.name}:{old}", old, CANARY_SHARE / 4),
                    Target(both.url, f"{MINI.name}:{new}", new, CANARY_SHARE / 4),
                ],
            )
            time.sleep(seconds)

            after = stack.enter_context(service("new", new))
            load.direct("switched", [Target(after.url, MINI.name, new)])
            end(both)
            end(before)
            time.sleep(seconds)

            again = stack.enter_context(service("old-again", old))
            load.direct("rolled back", [Target(again.url, MINI.name, old)])
            end(after)
            time.sleep(seconds)
    return load


def import_version(store: Path, seed: int) -> str:
    """A version of the embedded model, of untrained weights, in a store of its own."""
    command = [sys.executable, "-m", "scripts.import_model", MINI.name, "--random", "--seed", str(seed)]
    environment = {**os.environ, "BENTOML_HOME": str(store)}
    run = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
    return run.stdout.decode().strip().partition(":")[2]


def random_proteins(count: int) -> list[str]:
    draw = np.random.default_rng(0)
    letters = list(STANDARD_RESIDUES)
    return ["".join(draw.choice(letters, draw.integers(30, 300))) for _ in range(count)]


def embeddings_of(store: Path, version: str, proteins: Sequence[str]) -> np.ndarray:
    """What the engine makes of each alone, without a service; (B, dim) float32."""
    engine = Engine(store / "models" / MINI.store_name / version, MINI, precision="fp32")
    alone = (engine.embed([Item(protein, pooled=True, dtype="float32")])[0] for protein in proteins)
    return np.stack([row for row in alone if isinstance(row, np.ndarray)])


def report(load: Load) -> str:
    """A line for each phase."""
    lines = [f"{'phase':12} {'answered':>9} {'by old':>8} {'by new':>8} {'cached proteins':>16}"]
    old, new = load.expected
    for phase in dict.fromkeys(phase for phase, _ in load.answered):
        by_old, by_new = load.answered[phase, old], load.answered[phase, new]
        lines.append(f"{phase:12} {by_old + by_new:9} {by_old:8} {by_new:8} {load.num_cached[phase]:16}")
    return "\n".join([*lines, f"{len(load.faults)} failed or stale", *load.faults[:20]])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.upgrade_drill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each phase under load (default: 10)")
    parser.add_argument("--clients", type=int, default=4, help="that ask at the same time (default: 4)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="pes-drill-") as folder:
        load = drill(Path(folder), options.seconds, options.clients)
    print(report(load))
    sys.exit(1 if load.faults else 0)


if __name__ == "__main__":
    main()
