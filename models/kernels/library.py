"""Finds, compiles and loads the kernels.

They are compiled once, with the C compiler that is there (cc, gcc, clang, or that of the `ziglang` package), and
kept beside their source, or in the user's cache folder where that is read-only.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).parent
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-Wall", "-Wextra", "-mfma")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16")
COMPILE_TIMEOUT_S = 120

# A process asks once for the use of tile data. Source: Linux, Documentation/arch/x86/xstate.rst
_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


class KernelsUnavailable(Exception):
    """The kernels cannot be used here; the message says why."""


@dataclass(frozen=True)
class Build:
    """One compilation of the source: its name, the processor's flags that it needs, the compiler's."""

    name: str
    needs: tuple[str, ...]
    flags: tuple[str, ...]


_WIDE = ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq", "avx512_bf16", "fma3")
BUILDS: Mapping[str, Build] = {
    build.name: build
    for build in (  # the first that a processor can run is the one to take
        Build("AMX", (*_WIDE, "amx_tile", "amx_bf16"), (*_AVX512, "-DUSE_TILES", "-mamx-tile", "-mamx-bf16")),
        Build("AVX512-BF16", _WIDE, _AVX512),
    )
}


class Kernels:
    """The compiled functions; arguments are those of models/kernels/*.c."""

    def __init__(self, library: Path, build: Build) -> None:
        self.instructions = build.name
        loaded = ctypes.CDLL(str(library))  # its threads are those of torch, whose OpenMP is in the process
        pointer, number, count, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
        self.linear = loaded.pes_linear
        self.linear.argtypes = [pointer] * 4 + [number] + [count] * 5
        self.linear.restype = None
        self.norm = loaded.pes_norm
        self.norm.argtypes = [pointer] * 4 + [real] + [count] * 3
        self.norm.restype = None
        self.attention = loaded.pes_attention
        self.attention.argtypes = (
            [pointer] * 3 + [count, number] + [count] * 2 + [pointer] * 3 + [count, real, count]
        )
        self.attention.restype = count


def load(build: Build | None = None) -> Kernels:
    """The kernels for this processor, compiled if they are not yet.

    Raises:
        KernelsUnavailable: no build for this processor, no compiler, or a failed compilation.
    """
    build = build or choose_build()
    if "amx_tile" in build.needs:
        _ask_for_tiles()
    try:
        library = compiled(build)
    except OSError as error:
        raise KernelsUnavailable(f"the kernels cannot be compiled: {error}") from None
    try:
        return Kernels(library, build)
    except OSError as error:
        raise KernelsUnavailable(f"{library.name} does not load: {error}") from None


def choose_build() -> Build:
    """The best build that this processor runs."""
    import torch  # not to compile

    has = torch.cpu.get_capabilities()
    for build in BUILDS.values():
        if all(has.get(flag) for flag in build.needs):
            return build
    raise KernelsUnavailable("the processor has no AVX512-BF16")


def compiled(build: Build) -> Path:
    """The shared library of a build: found, or compiled now.

    Raises:
        KernelsUnavailable: another system or processor, no compiler, or a failed compilation.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise KernelsUnavailable(f"no kernels for {platform.machine()} on {sys.platform}")
    sources = sorted(SOURCE.glob("*.c"))
    digest = hashlib.sha256(
        "".join([*map(Path.read_text, [*sources, *SOURCE.glob("*.h")]), *build.flags]).encode()
    )
    name = f"kernels-{build.name.lower()}-{digest.hexdigest()[:12]}.so"
    for folder in _folders():
        if (folder / name).exists():
            return folder / name
    for folder in _folders():
        if os.access(folder, os.W_OK):
            _compile(sources, build, folder / name)
            return folder / name
    raise KernelsUnavailable("no folder to keep the compiled kernels in")


def _folders() -> Iterator[Path]:
    yield SOURCE
    cache = Path(tempfile.gettempdir()) / f"protein-embedding-kernels-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    if cache.stat().st_uid == os.getuid() and not cache.is_symlink():  # nobody else's code is loaded
        yield cache


def _compile(sources: list[Path], build: Build, library: Path) -> None:
    """By the first compiler that can: one may be there without the headers of the C library, say."""
    reason = "no C compiler (cc, gcc, clang, or `pip install ziglang`)"
    for compiler in compilers():
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            made = Path(scratch) / library.name
            command = [*compiler, *_FLAGS, *build.flags, *map(str, sources), "-o", str(made)]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, check=False, timeout=COMPILE_TIMEOUT_S
                )
            except subprocess.TimeoutExpired:
                reason = f"{compiler[0]} took more than {COMPILE_TIMEOUT_S} s"
                continue
            if done.returncode == 0:
                made.rename(library)
                return
            reason = f"{compiler[0]} failed; the log has its messages"
            logger.warning("%s failed: %s", " ".join(command), done.stderr)
    raise KernelsUnavailable(reason)


def compilers() -> Iterator[list[str]]:
    """The commands that compile C here."""
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            yield [found]
    if importlib.util.find_spec("ziglang"):
        yield [sys.executable, "-m", "ziglang", "cc"]


def _ask_for_tiles() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA):
        raise KernelsUnavailable("the system does not let this process use AMX tiles")
