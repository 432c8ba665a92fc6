"""What a newcomer runs first."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scripts.local_service import ROOT
from serving.sequences import parse_fasta

NO_NETWORK = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def can_leave_the_network() -> bool:
    try:
        return subprocess.run([*NO_NETWORK, "true"], stderr=subprocess.DEVNULL, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "prefix",
    [
        pytest.param([], id="as it is"),
        pytest.param(
            NO_NETWORK,
            marks=pytest.mark.skipif(
                not can_leave_the_network(), reason="unshare or ip is not there, or not allowed"
            ),
            id="no network",
        ),
    ],
)
def test_the_demo_shows_every_protein_and_the_cache_at_work(stored_models: None, prefix: list[str]) -> None:
    command = [*prefix, sys.executable, "-m", "scripts.demo"]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=120, check=False)
    output = run.stdout.decode()
    assert run.returncode == 0, output
    assert "UNTRAINED" in output
    for record in parse_fasta((ROOT / "examples" / "proteins.fasta").read_text()):
        rows = [line for line in output.splitlines() if line.split()[:1] == [record.id]]
        assert ["hit" in row for row in rows] == [False, False, True]
        assert f" {len(record.sequence)} x 144 " in rows[1]
