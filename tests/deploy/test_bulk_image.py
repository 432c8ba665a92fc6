"""The image of bulk runs, as far as it can be seen without an engine that builds it: what is copied is enough."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from scripts import import_model

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "k8s" / "bulk"
DEADLINE_S = 120


def test_what_the_image_has_of_this_repository_makes_a_run(tmp_path: Path) -> None:
    import_model.main(["esm2_mini", "--if-missing"])
    copied = re.findall(r"^COPY (?:--from=\S+ )?(?:/app/)?(\w+) \w+$", (FOLDER / "Dockerfile").read_text(), re.M)
    app, output = tmp_path / "app", tmp_path / "out"
    for name in {*copied}:
        shutil.copytree(ROOT / name, app / name)
    examples = ROOT / "examples" / "proteins.fasta"
    done = subprocess.run(
        [sys.executable, "-m", "scripts.embed_bulk", str(examples), str(output), "--model", "esm2_mini"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(app)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(output.glob("shard-*"))


def test_nothing_that_is_copied_is_kept_out_of_the_build() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (FOLDER / "Dockerfile").read_text(), re.M)
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().split()
    let_in = [line[1:] for line in ignored if line.startswith("!")]
    for name in " ".join(copied).split():
        assert (ROOT / name).exists()
        assert any(fnmatch.fnmatchcase(name, pattern) for pattern in let_in)


def test_the_manifests_and_the_page_name_the_image_alike() -> None:
    used = re.findall(r"image: (\S+)", "".join(path.read_text() for path in FOLDER.glob("bulk-*.yaml")))
    for path in (ROOT / "docs" / "bulk.md", FOLDER / "Dockerfile"):
        told = re.findall(r"--tag (\S+)", path.read_text())
        assert {*told} == {*used}
