"""A running service as these tests see it: what it answers, and the processes behind it."""

from __future__ import annotations

import json
import random
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil

from scripts.local_service import LocalService
from scripts.npz import read_npz

MODEL = "esm2_t6_8M"
RUNNER = f"runner_{MODEL}"
GATEWAY = "protein_embedding_service"
# On the CPU whatever the machine has, so that a request takes as long as the tests need to break something
SETTINGS = {"MODELS": MODEL, "PRECISION": "fp32", "GATEWAY_WORKERS": "2", "CUDA_VISIBLE_DEVICES": ""}
NPZ = {"accept": "application/x-npz"}

PATIENCE_S = 60.0  # for what takes a few seconds on a quiet machine: the start of a process and its model
LENGTH = 300
LARGE = 12  # sequences of LENGTH: more than a batch holds, less than a call
BATCH = 11  # sequences of LENGTH in a batch at most


def proteins(count: int, seed: int, length: int = LENGTH) -> list[str]:
    """Random sequences, all different."""
    draw = random.Random(seed)
    return ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=length)) for _ in range(count)]


def wait_until(holds: Callable[[], bool], claim: str, patience_s: float = PATIENCE_S) -> None:
    """Polls. Fails with the claim where it does not come true in time."""
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {patience_s:g} s: {claim}"
        time.sleep(0.02)


def assert_same(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    """The same embeddings, however they were batched."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)  # measured: 1.4e-6, of values up to 3


def arrays_of(reply: httpx.Response) -> list[np.ndarray]:
    """The embeddings in a reply that is a npz, in order; those that failed are not among them."""
    assert reply.status_code == 200, reply.text
    arrays = read_npz(reply.content)
    names = [f"embedding_{index}" for index in range(int(arrays["sequence_count"]))]
    return [arrays[name] for name in names if name in arrays]


@dataclass(frozen=True)
class Running:
    """The service, and a client of it."""

    service: LocalService
    http: httpx.Client

    @property
    def outputs(self) -> Path:
        return self.service.log.parent / "outputs"

    def post(self, sequences: Sequence[str], http: httpx.Client | None = None, **options: Any) -> httpx.Response:
        """Asks for a npz of pooled float32 embeddings, by a client of one's own if given."""
        body = {"sequences": sequences, "dtype": "float32", **options}
        return (http or self.http).post(f"/embeddings/compute/{MODEL}", json=body, headers=NPZ)

    def summary(self, sequences: Sequence[str]) -> dict[str, Any]:
        """The reply in JSON."""
        body = {"sequences": sequences, "dtype": "float32"}
        reply = self.http.post(f"/embeddings/compute/{MODEL}", json=body)
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    def embed(self, sequences: Sequence[str]) -> list[np.ndarray]:
        return arrays_of(self.post(sequences))

    def expect(self, requests: Sequence[Sequence[str]]) -> list[list[np.ndarray]]:
        """What each of the requests is to be answered.

        Asked for residue by residue: neither the cache nor the batcher then knows the pooled embeddings.
        """
        replies = [arrays_of(self.post(sequences, pooled=False)) for sequences in requests]
        return [[rows.mean(0) for rows in reply] for reply in replies]

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/embeddings/health").json()
        return found

    def info(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/embeddings/model/info").json()
        return found

    def batcher(self) -> dict[str, int]:
        """The runner's counters; nothing while it does not answer."""
        found: dict[str, int] = self.info()["batcher"]
        return found

    def num_tokens(self, model: str = MODEL) -> int:
        """That the runner has worked on since it started, those of canaries too."""
        (line,) = re.findall(rf'^batcher_tokens_total{{model="{model}"}} (.+)$', self.metrics(), re.M)
        return int(float(line))

    def metrics(self) -> str:
        return self.http.get("/metrics").text

    def workers(self, service: str) -> list[psutil.Process]:
        """The processes of one of the services: RUNNER or GATEWAY."""
        return [process for process in self.children() if _service_of(process) == service]

    def children(self) -> list[psutil.Process]:
        """Every process but BentoML's own, the one that starts the others."""
        return self.parent.children(recursive=True)

    @property
    def parent(self) -> psutil.Process:
        assert self.service.process is not None
        return psutil.Process(self.service.process.pid)

    @contextmanager
    def connected_to(self, worker: psutil.Process) -> Iterator[httpx.Client]:
        """A client on one connection, which that gateway worker has accepted."""
        others = [process for process in self.workers(GATEWAY) if process != worker]
        with httpx.Client(
            base_url=self.service.url, timeout=PATIENCE_S, limits=httpx.Limits(max_connections=1)
        ) as http:
            for other in others:
                other.suspend()
            try:
                assert http.get("/livez").status_code == 200
            finally:
                for other in others:
                    other.resume()
            yield http

    @contextmanager
    def under_way(
        self, requests: Sequence[Sequence[str]], clients: Sequence[httpx.Client] | None = None
    ) -> Iterator[list[Future[httpx.Response]]]:
        """Inside, the runner has every request (of LARGE sequences), and most are still to be computed."""
        before, total = self.batcher()["num_items"], sum(len(sequences) for sequences in requests)
        own = [httpx.Client(base_url=self.service.url, timeout=PATIENCE_S) for _ in requests if not clients]

        def is_there() -> bool:
            now = self.batcher()
            return now["num_items"] - before + now["queue_items"] >= total - BATCH

        try:
            with ThreadPoolExecutor(len(requests)) as pool:
                answers = [
                    pool.submit(self.post, sequences, client)
                    for sequences, client in zip(requests, clients or own, strict=True)
                ]
                wait_until(is_there, "the runner has every request")
                assert self.batcher()["queue_items"] > BATCH, "too little is left to be computed"
                yield answers
        finally:
            for client in own:
                client.close()

    @contextmanager
    def left_alone(self, sequences: Sequence[str]) -> Iterator[None]:
        """A request that is under way inside; at the end its client closes the connection."""
        body = json.dumps({"sequences": sequences}).encode()
        address = urlsplit(self.service.url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            head = f"POST /embeddings/compute/{MODEL} HTTP/1.1\r\nHost: {address.netloc}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            wait_until(lambda: self.batcher()["queue_items"] > 0, "the request is under way")
            yield

    def assert_well(self) -> None:
        """Ready, healthy, nothing left behind in the queue, and the numbers come."""
        wait_until(lambda: self.http.get("/readyz").status_code == 200, "ready")
        wait_until(lambda: self.health()["status"] == "healthy", "healthy")
        wait_until(lambda: self.batcher()["queue_items"] == 0, "an empty queue")
        new = proteins(1, seed=time.monotonic_ns(), length=50)  # in no cache
        wait_until(lambda: self.post(new).status_code == 200, "it computes")


@contextmanager
def running(
    data_dir: Path, target: str = "service:ProteinEmbeddingService", **environment: str
) -> Iterator[Running]:
    """A service of one's own. Its log is shown where a test fails inside."""
    with (
        LocalService(data_dir, SETTINGS | environment, target) as service,
        httpx.Client(base_url=service.url, timeout=PATIENCE_S) as http,
    ):
        try:
            yield Running(service, http)
        except BaseException:
            print(service.tail(100))
            raise


def _service_of(process: psutil.Process) -> str | None:
    try:
        arguments = process.cmdline()
    except psutil.Error:  # it has just ended
        return None
    return arguments[arguments.index("--service-name") + 1] if "--service-name" in arguments else None
