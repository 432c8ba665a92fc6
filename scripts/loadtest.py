"""Mixed requests at a running service, by Locust: hits, misses, batches, FASTA, residues, health, and bad ones.

    python -m scripts.loadtest --url http://127.0.0.1:3000 --users 8 --seconds 30
    locust -f scripts/loadtest.py --host http://127.0.0.1:3000

An answer of a status that its request must not have is a failure, and the exit status is then 1. Needs
requirements-loadtest.txt, and the root of the tree as working folder. A second run with the same seed meets the
cache of the first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from itertools import count, islice
from typing import Any

import numpy as np
from locust import HttpUser, between, events, task

from scripts.benchmarks.streams import fresh
from scripts.benchmarks.workload import sample

NPZ = {"accept": "application/x-npz"}
FASTA = {"content-type": "text/x-fasta"}
MAX_LENGTH = 600
HITS = sample(20, MAX_LENGTH, seed=0)
BAD_BODIES: tuple[object, ...] = (
    {"sequences": []},
    {"sequences": ["MKTAYIAKQJRQ"]},
    {"sequences": ["MKT"]},
    {"sequences": ["MKTAYIAKQRQ"], "pool": True},
)
_numbers = count()


@events.init_command_line_parser.add_listener
def add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of the new sequences (default: 0)")


class Client(HttpUser):
    """One who asks for the first model of the service."""

    wait_time = between(0.05, 0.5)

    def on_start(self) -> None:
        info = self.client.get("/embeddings/model/info").json()
        self.path = f"/embeddings/compute/{info['model_type']}"
        rng = np.random.default_rng((self.environment.parsed_options.seed, next(_numbers)))
        self.unseen = fresh(sample(50, MAX_LENGTH, seed=int(rng.integers(1 << 32))))

    @task(10)
    def hit(self) -> None:
        self._compute("1 of 20 sequences", json={"sequences": [HITS[next(_numbers) % len(HITS)]]})

    @task(6)
    def miss(self) -> None:
        self._compute("1 new sequence", json={"sequences": self._new(1)})

    @task(3)
    def batch(self) -> None:
        self._compute("8 new sequences", json={"sequences": self._new(8)})

    @task(2)
    def fasta(self) -> None:
        records = "".join(f">protein_{index}\n{sequence}\n" for index, sequence in enumerate(self._new(3)))
        self._compute("FASTA of 3", data=records, headers=FASTA)

    @task(2)
    def residues(self) -> None:
        body = {"sequences": self._new(2), "pooled": False}
        self._compute("2 per residue, npz", json=body, headers=NPZ)

    @task(1)
    def health(self) -> None:
        with self.client.get("/embeddings/health", name="health", catch_response=True) as reply:
            self._expect(reply, 200)

    @task(1)
    def bad(self) -> None:
        body = BAD_BODIES[next(_numbers) % len(BAD_BODIES)]
        self._compute("bad, must be 422", 422, json=body)

    def _new(self, num: int) -> list[str]:
        return list(islice(self.unseen, num))

    def _compute(self, name: str, expected: int = 200, **request: Any) -> None:
        with self.client.post(self.path, name=name, catch_response=True, **request) as reply:
            self._expect(reply, expected)

    def _expect(self, reply: Any, expected: int) -> None:
        if reply.status_code == expected:
            reply.success()
        else:
            reply.failure(f"status {reply.status_code} instead of {expected}: {reply.text[:200]}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.loadtest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", default="http://127.0.0.1:3000", help="(default: http://127.0.0.1:3000)")
    parser.add_argument("--users", type=int, default=8, help="at a time (default: 8)")
    parser.add_argument("--seconds", type=int, default=30, help="(default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the new sequences (default: 0)")
    options = parser.parse_args(arguments)
    command = [sys.executable, "-m", "locust", "-f", __file__, "--headless", "--only-summary"]
    command += ["--host", options.url, "--users", str(options.users), "--spawn-rate", str(options.users)]
    command += ["--run-time", f"{options.seconds}s", "--stop-timeout", "60", "--seed", str(options.seed)]
    raise SystemExit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
