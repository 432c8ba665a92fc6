"""What a newcomer runs first."""

from __future__ import annotations

import subprocess
import sys

from scripts.local_service import ROOT
from serving.sequences import parse_fasta


def test_the_demo_shows_every_protein_and_the_cache_at_work(stored_models: None) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "scripts.demo"], cwd=ROOT, stdout=subprocess.PIPE, timeout=120, check=False
    )
    output = run.stdout.decode()
    assert run.returncode == 0, output
    assert "UNTRAINED" in output
    for record in parse_fasta((ROOT / "examples" / "proteins.fasta").read_text()):
        rows = [line for line in output.splitlines() if line.split()[:1] == [record.id]]
        assert ["hit" in row for row in rows] == [False, False, True]
        assert f" {len(record.sequence)} x 144 " in rows[1]
