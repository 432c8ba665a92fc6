"""The first command of an image, in a shell."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from scripts.local_service import ROOT
from serving.image import UV, first_command


@pytest.mark.parametrize(("torch", "wheels"), [("cpu", ""), ("cuda", "/one /with'quote")])
def test_it_puts_the_script_there_with_what_was_asked_for(tmp_path: Path, torch: str, wheels: str) -> None:
    target = tmp_path / "uv"
    command = first_command(torch, wheels).replace("/usr/local/bin/uv", str(target))
    subprocess.run(["sh", "-euc", command], check=True)
    shebang, first, second, *rest = target.read_text().splitlines()
    assert shebang == "#!/bin/sh"
    values = subprocess.run(
        ["sh", "-euc", f'{first}; {second}; printf "%s|%s" "$IMAGE_TORCH" "$IMAGE_WHEELS"'],
        stdout=subprocess.PIPE,
        check=True,
    )
    assert values.stdout.decode() == f"{torch}|{wheels}"
    assert rest == [line for line in (ROOT / UV).read_text().splitlines()[1:] if not line.startswith("# ")]
    assert target.stat().st_mode & 0o111
    subprocess.run(["sh", "-n", str(target)], check=True)
