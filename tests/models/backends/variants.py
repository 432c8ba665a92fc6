"""Every way to compute: torch's operations in each precision, our kernels in each build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pytest
import torch

from models.backends.choice import Choice, choose
from models.backends.native import Native
from models.catalogue import Family
from models.kernels.library import BUILDS, Build, KernelsUnavailable, load

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Variant:
    """build: of our kernels; none: torch's operations."""

    precision: Literal["fp32", "bf16", "fp16"]
    build: Build | None = None


VARIANTS: Mapping[str, Variant] = {
    "portable-fp32": Variant("fp32"),
    "portable-bf16": Variant("bf16"),
    "portable-fp16": Variant("fp16"),
    **{f"native-{name}": Variant("bf16", build) for name, build in BUILDS.items()},
}


def native(build: Build) -> Native:
    """The kernels of a build. Where they cannot run the test is skipped; where they do not compile it fails."""
    has = torch.cpu.get_capabilities()
    if missing := [flag for flag in build.needs if not has.get(flag)]:
        pytest.skip(f"this processor has no {', '.join(missing)}")
    try:
        return Native(load(build))
    except KernelsUnavailable as error:
        if any(reason in str(error) for reason in ("no C compiler", "does not let", "no kernels for")):
            pytest.skip(str(error))
        raise


def choice_of(variant: Variant, family: Family) -> Choice:
    if variant.build is None:
        return choose(CPU, family, variant.precision, use_kernels=False)
    return Choice(native(variant.build), variant.precision, "asked for by a test", "asked for by a test")
