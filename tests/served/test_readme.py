"""What the README and the examples tell people to run, run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.local_service import ROOT
from tests.served.conftest import Served

ADDRESS = "http://127.0.0.1:3000"
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")


def run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@needs_curl
def test_every_block_of_the_readme_runs(served: Served, tmp_path: Path) -> None:
    """In the order of the page, as later blocks read what earlier ones wrote."""
    assert {kind for kind, _ in BLOCKS} == {"bash", "python"}
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for kind, text in BLOCKS:
        code = text.replace(ADDRESS, served.url)
        run(["bash", "-euo", "pipefail", "-c", code] if kind == "bash" else [sys.executable, "-c", code], tmp_path)
    assert (tmp_path / "pooled.npz").exists()


@pytest.mark.parametrize("client", ["client_http.py", "client_bentoml.py"])
def test_the_python_clients_show_embeddings(served: Served, client: str) -> None:
    output = run([sys.executable, f"examples/{client}", served.url], ROOT)
    assert "144)" in output


@needs_curl
def test_the_curl_client_downloads_a_file(served: Served) -> None:
    output = run(["examples/client_curl.sh", served.url], ROOT)
    assert re.search(r"/embeddings/download/esm2_mini/numpy/\S+: \d+ bytes", output)


def test_every_setting_is_in_the_readme() -> None:
    from serving.settings import Settings

    table = (ROOT / "README.md").read_text()
    for name in Settings.model_fields:
        assert f"| `{name.upper()}` |" in table


def test_every_file_is_in_the_tree_of_the_readme() -> None:
    tree = (ROOT / "README.md").read_text().partition("## Files")[2]
    tracked = subprocess.run(
        ["git", "ls-files", "*.py", "*.sh", "docs/*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    shown = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.strip()}
    for path in map(Path, tracked):
        is_shown_by_folder = bool({"tests", "benchmarks", "peers", "scaling", "decisions"} & set(path.parts))
        name = path.parent.name if is_shown_by_folder else path.name
        if name not in ("__init__.py", "tests"):
            assert name in shown, path
