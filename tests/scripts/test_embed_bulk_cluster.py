"""The command with a Ray cluster of one machine: started elsewhere, without this repository, behind a token."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from scripts import import_model
from scripts.local_service import free_port

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "proteins.fasta"
DEADLINE_S = 120


@dataclass(frozen=True)
class Cluster:
    """client_port: of Ray's client. environment: of who calls the command, with the head's address and token."""

    client_port: int
    environment: dict[str, str]

    def address(self, kind: str) -> str:
        return f"ray://127.0.0.1:{self.client_port}" if kind == "ray" else kind


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    import_model.main(["esm2_mini", "--if-missing"])
    head_port, client_port = free_port(), free_port()
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | secret
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    # Short, for sockets are made in there; Ray's helpers may still write logs when it has ended
    with tempfile.TemporaryDirectory(prefix="pes-ray-", ignore_cleanup_errors=True) as folder:
        ports = [f"--port={head_port}", f"--ray-client-server-port={client_port}"]
        ports += ["--min-worker-port=0", "--max-worker-port=0", "--node-ip-address=127.0.0.1"]
        ray = str(Path(sys.executable).with_name("ray"))
        command = [ray, "start", "--head", "--block", "--num-cpus=2", "--include-dashboard=false", *ports]
        command += [f"--temp-dir={folder}", "--object-store-memory=100000000"]
        with (elsewhere / "log").open("w") as log:
            head = subprocess.Popen(command, cwd=elsewhere, env=environment, stdout=log, stderr=log)
        try:
            _wait_for(client_port, head, elsewhere / "log")
            yield Cluster(client_port, environment | {"RAY_ADDRESS": f"127.0.0.1:{head_port}"})
        finally:
            head.send_signal(signal.SIGTERM)
            head.wait(DEADLINE_S)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + DEADLINE_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < give_up, log.read_text()
        time.sleep(0.1)


def embed(output: Path, environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """In a folder where an actor finds nothing, as Ray has it look where the command was called."""
    command = [sys.executable, "-m", "scripts.embed_bulk", str(EXAMPLES), str(output), "--model", "esm2_mini"]
    return subprocess.run(
        [*command, *options],
        cwd=output.parent,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def vectors(output: Path) -> dict[str, np.ndarray]:
    rows = [row for path in output.glob("shard-*") for row in parquet.read_table(path).to_pylist()]
    return {row["id"]: np.array(row["embedding"]) for row in rows}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Of a run on a Ray of its own."""
    output = tmp_path_factory.mktemp("alone") / "out"
    done = embed(output, {**os.environ})
    assert done.returncode == 0, done.stderr
    return vectors(output)


@pytest.mark.parametrize("kind", ["ray", "auto"])
def test_a_cluster_needs_no_copy_of_the_code(
    cluster: Cluster, alone: dict[str, np.ndarray], tmp_path: Path, kind: str
) -> None:
    done = embed(tmp_path / "out", cluster.environment, "--address", cluster.address(kind), "--actors", "1:2")
    assert done.returncode == 0, done.stderr
    found = vectors(tmp_path / "out")
    assert len(found) == EXAMPLES.read_text().count(">")
    assert found.keys() == alone.keys()
    assert all(np.array_equal(found[id], alone[id]) for id in found)


@pytest.mark.parametrize(("kind", "mode"), [("ray", {}), ("auto", {"RAY_AUTH_MODE": "token"})])
def test_who_has_no_token_is_told_how_to_give_one(
    cluster: Cluster, tmp_path: Path, kind: str, mode: dict[str, str]
) -> None:
    without = {name: value for name, value in cluster.environment.items() if not name.startswith("RAY_AUTH")}
    environment = without | mode | {"HOME": str(tmp_path)}
    done = embed(tmp_path / "out", environment, "--address", cluster.address(kind))
    assert done.returncode == 1
    assert f"{cluster.address(kind)}: " in done.stderr
    assert "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr
