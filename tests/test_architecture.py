"""Who may import whom, as docs/structure.md says it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.local_service import ROOT


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize(
    ("folder", "forbidden", "exceptions"),
    [
        ("serving", {"torch", "bentoml", "transformers", "safetensors"}, set()),
        ("models", {"fastapi", "redis", "serving", "starlette", "pydantic"}, set()),
        ("models", {"bentoml"}, {"models/runner.py", "models/store.py"}),
        ("models", {"ray", "bulk"}, set()),
        ("serving", {"ray", "bulk"}, set()),
        ("bulk", {"ray"}, {"bulk/cluster.py", "bulk/pool.py", "bulk/driver.py"}),
        ("bulk", {"bentoml", "fastapi", "scripts"}, set()),
    ],
)
def test_a_folder_keeps_to_its_own(folder: str, forbidden: set[str], exceptions: set[str]) -> None:
    for path in files(folder):
        if path.relative_to(ROOT).as_posix() not in exceptions:
            assert not imported(path) & forbidden, path


def test_the_environment_is_read_in_one_place() -> None:
    for folder in ("serving", "models"):
        for path in files(folder):
            if path.name != "settings.py":
                text = path.read_text()
                assert "environ" not in text, path
                assert "getenv" not in text, path


def test_a_driver_of_bulk_runs_loads_no_torch() -> None:
    code = "import sys, bulk.driver, bulk.report, bulk.source; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_gateway_loads_no_torch() -> None:
    code = "import sys, serving.app, serving.gateway; sys.exit('torch' in sys.modules or 'bentoml' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
