"""How an image is made of a Bento, for `bentoml build`; the packages and variables are in bentofile.yaml."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

PYTHON = "3.11"
BASE = f"python:{PYTHON}-slim"
UV = Path("deploy/image/uv")  # from where the Bento is built; a Bento has none, nothing is left to make in it


def first_command(torch: str, wheels: str) -> str:
    """Puts `UV` where BentoML's own commands find it.

    A script of its own would be lost: BentoML copies the image that it is given, without its scripts.

    Args:
        torch: `cpu` or `cuda`.
        wheels: folders, of which those count that are there when the image is made.
    """
    first, *rest = (line for line in UV.read_text().splitlines() if not line.startswith("# "))
    lines = [first, f"IMAGE_TORCH={quote(torch)}", f"IMAGE_WHEELS={quote(wheels)}", *rest]
    words = ["printf '%s\\n'", *map(quote, lines), "> /usr/local/bin/uv && chmod +x /usr/local/bin/uv"]
    return " \\\n    ".join(words)
