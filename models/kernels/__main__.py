"""Compiles the kernels for every processor that they are written for: `python -m models.kernels`."""

from __future__ import annotations

import sys

from models.kernels.library import BUILDS, KernelsUnavailable, compiled

if __name__ == "__main__":
    try:
        for build in BUILDS.values():
            print(f"kernels for {build.name}: {compiled(build).name}")
    except KernelsUnavailable as error:
        sys.exit(f"no kernels: {error}")
