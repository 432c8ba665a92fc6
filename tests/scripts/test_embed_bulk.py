"""The command line of bulk runs, in a process of its own as people call it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import parquet

from scripts import import_model
from scripts.embed_bulk import main, parse
from scripts.local_service import ROOT


def call(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.embed_bulk", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=180)


def test_a_run_a_refusal_and_going_on(tmp_path: Path) -> None:
    import_model.main(["esm2_mini", "--if-missing"])
    (tmp_path / "wrong.fasta").write_text(">wrong\nMKTAJ\n")
    inputs = [str(ROOT / "examples" / "proteins.fasta"), str(tmp_path / "*.fasta")]
    words = [*inputs, str(tmp_path / "out"), "--model", "esm2_mini", "--actors", "1", "--price-per-hour", "2"]
    run = call(*words)
    assert run.returncode == 0, run.stderr
    assert "untrained weights" in run.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["num_embedded"], summary["num_failed"]) == (12, 1)
    assert summary["cost"] > 0
    (shard,) = (tmp_path / "out").glob("shard-*")
    assert parquet.read_table(shard).num_rows == 12
    assert parquet.read_table(tmp_path / "out" / "errors.parquet")["id"].to_pylist() == ["wrong"]
    assert (tmp_path / "out" / "plot.png").read_bytes().startswith(b"\x89PNG")
    for change, said in (([], "--resume goes on"), (["--resume", "--dtype", "float32"], "dtype 'float16'")):
        with pytest.raises(SystemExit) as ended:
            main([*words, *change])
        assert ended.value.code == 1
        assert said in call(*words, *change).stderr


@pytest.mark.parametrize("actors", ["0", "2:1", "many"])
def test_a_pool_that_cannot_be_is_refused(actors: str) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["a.fasta", "out", "--model", "esm2_mini", "--actors", actors])
    assert ended.value.code == 2
