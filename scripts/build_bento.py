"""Builds the Bento with the models of MODELS and TEXT_MODELS inside, and prints its tag and its folder.

    python -m scripts.build_bento [--torch cpu|cuda]

`bentoml build` names the models and leaves them in the store. Here they go along, as `bentoml export` would put
them, so that the folder is all that the making of an image needs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import bentoml

from scripts.local_service import ROOT


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.build_bento", description=__doc__.splitlines()[0])
    parser.add_argument("--torch", choices=["cpu", "cuda"], default="cpu", help="in the image (default: cpu)")
    bento = build(parser.parse_args(arguments).torch)
    add_models(bento)
    print(f"{bento.tag}\n{bento.path}")


def build(torch: str) -> bentoml.Bento:
    """As bentofile.yaml and service.py say; what BentoML writes beside the tag goes to standard error."""
    command = [str(Path(sys.executable).with_name("bentoml")), "build", "--output", "tag"]
    environment = {**os.environ, "IMAGE_TORCH": torch}
    run = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=False)
    if run.returncode != 0:
        sys.exit(f"bentoml build ended with {run.returncode}")
    return bentoml.bentos.get(run.stdout.decode().strip().removeprefix("__tag__:"))


def add_models(bento: bentoml.Bento) -> None:
    """The models that the Bento names go into its folder, without taking room a second time where that can be."""
    every = [bentoml.models.get(model.tag) for model in bento.info.all_models]
    for stored in sorted(every, key=lambda one: one.info.creation_time):
        folder = Path(bento.path, "models", stored.tag.name)
        shutil.copytree(stored.path, folder / str(stored.tag.version), copy_function=_link)
        # BentoML would write it when a name without a version is asked for, where nobody may write
        (folder / "latest").write_text(str(stored.tag.version))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one that has no links
        shutil.copy2(source, target)


if __name__ == "__main__":
    main()
