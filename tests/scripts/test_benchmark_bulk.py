"""The benchmark of bulk runs, on little work: what it prints and writes, never how fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import import_model
from scripts.benchmark import main


def test_a_bulk_run_has_the_engines_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import_model.main(["esm2_mini", "--if-missing"])
    path = tmp_path / "line.json"
    main(["bulk", "--model", "esm2_mini", "--num", "20", "--max-length", "200", "--json", str(path)])
    line = json.loads(path.read_text())
    assert capsys.readouterr().out.splitlines()[-1] == path.read_text().rstrip()
    assert (line["num_sequences"], line["num_differing"]) == (20, 0)
    assert min(line["peak_bytes"].values()) > 0
