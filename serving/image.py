"""How an image is made of a Bento, for `bentoml build`; the packages and variables are in bentofile.yaml."""

from __future__ import annotations

import os
from pathlib import Path
from shlex import quote

from bentoml.images import Image

BASE = "python:3.11-slim"
UV = Path("deploy/image/uv")  # from where the Bento is built; a Bento has none, nothing is left to make in it
TORCH = os.environ.get("IMAGE_TORCH", "cpu")  # or cuda


def make_image() -> Image | None:
    """Without the compilers that BentoML adds to a distribution which it knows."""
    if not UV.exists():
        return None
    wheels = os.environ.get(
        "PIP_FIND_LINKS", ""
    )  # folders; one that is not there when the image is made is left out
    first, *rest = (line for line in UV.read_text().splitlines() if not line.lstrip().startswith("# "))
    lines = [first, f"IMAGE_TORCH={quote(TORCH)}", f"IMAGE_WHEELS={quote(wheels)}", *rest]
    # A script of its own would be lost: BentoML copies the image without its scripts
    words = ["printf '%s\\n'", *map(quote, lines), "> /usr/local/bin/uv && chmod +x /usr/local/bin/uv"]
    return Image(BASE, distro="").run(" \\\n    ".join(words))
