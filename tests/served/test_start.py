"""A start that cannot succeed stops at once, with the reason; and a start without Redis goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import bentoml
import httpx
import numpy as np
import psutil
import pytest

from scripts import import_model
from scripts.local_service import ROOT, LocalService, free_port
from tests.chaos.running import wait_until

GOOD = "MKTAYIAKQRQISFVKSHFSRQ"


def start(data_dir: Path, **environment: str) -> tuple[int, str]:
    """Exit status and output of a start that is expected to stop by itself."""
    bento = Path(sys.executable).with_name("bentoml")
    run = subprocess.run(
        [str(bento), "serve", "service:ProteinEmbeddingService", "--port", str(free_port())],
        cwd=ROOT,
        env={**os.environ, "DATA_DIR": str(data_dir), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=False,
    )
    return run.returncode, run.stdout.decode()


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("MODELS", "esm2_mini,esm2_mega", "unknown model 'esm2_mega'"),
        ("MODELS", "esm2_t48_15B", "python -m scripts.import_model esm2_t48_15B"),
        ("MAX_SEQUENCE_LENGTH", "ten", "MAX_SEQUENCE_LENGTH: "),
        ("MAX_QUEUE_TOKENS", "1", "MAX_QUEUE_TOKENS: "),
        ("DATA_DIR", "/proc/no", "DATA_DIR: "),
    ],
)
def test_a_bad_setting_stops_the_start(
    stored_models: None, data_dir: Path, variable: str, value: str, reason: str
) -> None:
    status, output = start(data_dir, **{variable: value})
    assert status != 0
    assert reason in output
    assert "Traceback" not in output


def test_a_damaged_checkpoint_stops_the_start(data_dir: Path, tmp_path: Path) -> None:
    """In a store of its own, which it spoils."""
    home = {"BENTOML_HOME": str(tmp_path / "store")}
    command = [sys.executable, "-m", "scripts.import_model", "esm2_mini"]
    tag = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **home}, stdout=subprocess.PIPE, check=True
    ).stdout.decode()
    folder = tmp_path / "store" / "models" / tag.strip().replace(":", "/")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(100_000)
    status, output = start(data_dir, **home)
    assert status != 0
    assert "model.safetensors is truncated" in output
    assert "Traceback" not in output


def test_versions_can_be_asked_for_and_are_served_side_by_side(stored_models: None, data_dir: Path) -> None:
    older = bentoml.models.get("esm2_mini").tag.version
    import_model.main(["esm2_mini", "--random", "--seed", "5"])  # is the latest one now
    newer = bentoml.models.get("esm2_mini").tag.version
    try:
        environment = {"MODELS": f"esm2_mini:{older},esm2_mini"}
        with (
            LocalService(data_dir, environment) as service,
            httpx.Client(base_url=service.url, timeout=60) as http,
        ):
            listed = http.get("/embeddings/models").json()["available_models"]
            found = {}
            for name in ("esm2_mini", f"esm2_mini:{older}", f"esm2_mini:{newer}"):
                reply = http.post(f"/embeddings/compute/{name}", json={"sequences": [GOOD]}).json()
                found[name] = (reply["model_info"]["tag"], reply["results"][0]["cached"])
            for version in (older, newer):
                body = {"model": f"esm2_mini:{version}", "input": GOOD}
                assert http.post("/v1/embeddings", json=body).status_code == 200
            unknown = http.post("/embeddings/compute/esm2_mini:nothing", json={"sequences": [GOOD]})
        assert {name: entry["tag"] for name, entry in listed.items()} == {
            "esm2_mini": f"esm2_mini:{older}",
            f"esm2_mini:{newer}": f"esm2_mini:{newer}",
        }
        assert list(found.values()) == [
            (f"esm2_mini:{older}", False),
            (f"esm2_mini:{older}", True),
            (f"esm2_mini:{newer}", False),
        ]
        assert unknown.status_code == 404
    finally:
        bentoml.models.delete("esm2_mini:latest")


def test_a_stuck_runner_turns_readiness_off_until_it_goes_on(stored_models: None, data_dir: Path) -> None:
    with LocalService(data_dir, {}) as service, httpx.Client(base_url=service.url, timeout=30) as http:
        assert service.process is not None
        (runner,) = [
            process
            for process in psutil.Process(service.process.pid).children(recursive=True)
            if "runner_esm2_mini" in process.cmdline()
        ]
        runner.suspend()
        # The latest canary's answer stands for a moment
        wait_until(lambda: http.get("/readyz").status_code == 503, "ready is off", patience_s=10)
        health = http.get("/embeddings/health")
        assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
        assert health.json()["components"]["runner_esm2_mini"]["connected"] is False
        assert http.get("/livez").status_code == 200
        runner.resume()
        wait_until(lambda: http.get("/readyz").status_code == 200, "ready is on again", patience_s=20)
        assert http.get("/embeddings/health").json()["status"] == "healthy"


def test_without_redis_the_service_computes_and_says_so(stored_models: None, data_dir: Path) -> None:
    environment = {"MODELS": "esm2_mini", "REDIS_URL": f"redis://127.0.0.1:{free_port()}"}
    with (
        LocalService(data_dir, environment) as service,
        httpx.Client(base_url=service.url, timeout=30) as http,
    ):
        for _ in range(2):
            reply = http.post("/embeddings/compute/esm2_mini", json={"sequences": [GOOD]})
            assert reply.status_code == 200
            assert reply.json()["cache_stats"]["total_hits"] == 0
            download = http.get(reply.json()["download_link"])
            assert download.status_code == 200
        npz = http.post(
            "/embeddings/compute/esm2_mini", json={"sequences": [GOOD]}, headers={"accept": "application/x-npz"}
        )
        assert npz.status_code == 200
        (data_dir / "x.npz").write_bytes(npz.content)
        with np.load(data_dir / "x.npz", allow_pickle=False) as arrays:
            assert arrays["embedding_0"].shape == (144,)
        health = http.get("/embeddings/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert health.json()["components"]["cache"]["errors"] > 0
        for refused in (http.get("/embeddings/cache/stats"), http.post("/embeddings/cache/clear")):
            assert (refused.status_code, refused.json()["error"]) == (503, "Store unavailable")
        assert len(list((data_dir / "outputs").iterdir())) == 2
