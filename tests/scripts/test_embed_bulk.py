"""The command as its users run it, in processes of its own: what docs/bulk.md shows, and a run that was killed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyarrow import parquet

from models.catalogue import MINI
from scripts import import_model
from tests.models.references import random_sequence

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "proteins.fasta"
COMMAND = [sys.executable, "-m", "scripts.embed_bulk"]
DEADLINE_S = 120


@pytest.fixture(scope="module", autouse=True)
def stored_model() -> None:
    """In the tests' own model store, where the command's processes look too."""
    import_model.main(["esm2_mini", "--if-missing"])


def embed(*arguments: str) -> str:
    command = [*COMMAND, *arguments, "--model", "esm2_mini"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def blocks_of(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "bulk.md").read_text(), re.DOTALL)


def test_the_examples_of_the_documentation_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = blocks_of("sh")[0].splitlines()[-1].partition("scripts.embed_bulk ")[2]
    assert shown == "examples/proteins.fasta embeddings --model esm2_mini"
    for form in ("parquet", "h5", "zarr"):
        folder = tmp_path / ("embeddings" if form == "parquet" else f"embeddings-{form}")
        embed(str(EXAMPLES), str(folder), "--format", form)
    monkeypatch.chdir(tmp_path)
    for example in blocks_of("python"):
        exec(compile(example, "docs/bulk.md", "exec"), {})
    num_proteins, dim = EXAMPLES.read_text().count(">"), MINI.dim
    first_id = EXAMPLES.read_text()[1:].split()[0]
    pooled, h5, zarr = capsys.readouterr().out.splitlines()[-3:]
    assert pooled.endswith(f" ({num_proteins}, {dim})")
    assert f"'{first_id}': ({dim},)" in h5
    assert zarr == f"{num_proteins} ({num_proteins}, {dim})"


def test_a_run_that_is_killed_goes_on_and_has_every_id_once(tmp_path: Path) -> None:
    source, output = tmp_path / "proteins.fasta", tmp_path / "out"
    source.write_text("".join(f">p{n}\n{random_sequence(60 + n, seed=n)}\n" for n in range(200)))
    options = [str(source), str(output), "--shard-tokens", "700"]
    process = subprocess.Popen(
        [*COMMAND, *options, "--model", "esm2_mini"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    give_up = time.monotonic() + DEADLINE_S
    while len(list(output.glob("shard-*"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    num_done = len(list(output.glob("shard-*")))
    embed(*options, "--resume")
    shards = sorted(output.glob("shard-*"))
    assert num_done < len(shards)
    ids = [id for path in shards for id in parquet.read_table(path)["id"].to_pylist()]
    assert sorted(ids) == sorted(f"p{n}" for n in range(200))
