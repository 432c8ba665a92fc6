"""Finding, compiling and loading the kernels, with compilers of a test's own that work, fail or hang.

The source is a few lines of C, so that a compilation takes no time.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from models.kernels import library
from models.kernels.library import BUILDS, Build, KernelsUnavailable, choose_build, compiled, load
from scripts.local_service import ROOT

SMALL = Build("SMALL", (), ())
OTHER = Build("OTHER", (), ("-DOTHER",))
SOURCE = """
#include "answer.h"
void pes_linear(void) {}
void pes_norm(void) {}
int pes_attention(void) { return ANSWER; }
"""
NO_ARGUMENTS = (*[None] * 3, 0, 0, 0, 0, *[None] * 3, 0, 0.0, 0)

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the kernels are for x86-64 on Linux"
)


class Compilers:
    """A folder of compilers, the only one in PATH, and a list of the runs."""

    def __init__(self, folder: Path, real: str) -> None:
        self._folder = folder
        self._real = real
        self._runs = folder / "runs"

    def add(self, name: str, script: str) -> None:
        """A compiler that does this before it compiles, with REAL_PATH as it was."""
        path = self._folder / name
        script = script.replace("COMPILE", f'PATH="{os.environ["REAL_PATH"]}" exec {self._real} "$@"')
        path.write_text(f"#!/bin/sh\necho {name} >> {self._runs}\n{script}\n")
        path.chmod(0o755)

    @property
    def runs(self) -> list[str]:
        return self._runs.read_text().split() if self._runs.exists() else []


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the source, and a folder of its own for temporary files."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "kernels.c").write_text(SOURCE)
    (folder / "answer.h").write_text("#define ANSWER 42\n")
    monkeypatch.setattr(library, "SOURCE", folder)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return folder


@pytest.fixture
def compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compilers:
    """None at first."""
    real = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if real is None:
        pytest.skip("no C compiler")
    find_spec = importlib.util.find_spec

    def find_others(name: str, package: str | None = None) -> importlib.machinery.ModuleSpec | None:
        return None if name == "ziglang" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_others)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("REAL_PATH", os.environ["PATH"])
    monkeypatch.setenv("PATH", str(folder))
    return Compilers(folder, real)


def answer(build: Build = SMALL) -> int:
    """What the loaded library says."""
    return int(load(build).attention(*NO_ARGUMENTS))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"kernels.c", "answer.h"}


def test_the_library_is_kept_beside_its_source(source: Path, compilers: Compilers) -> None:
    compilers.add("cc", "COMPILE")
    assert answer() == 42
    assert names(source) == {compiled(SMALL).name}
    assert compiled(SMALL).parent == source


def test_it_is_compiled_once(source: Path, compilers: Compilers) -> None:
    compilers.add("cc", "COMPILE")
    assert [answer(), answer()] == [42, 42]
    assert compilers.runs == ["cc"]


def test_each_build_has_a_library_of_its_own(source: Path, compilers: Compilers) -> None:
    compilers.add("cc", "COMPILE")
    assert compiled(SMALL) != compiled(OTHER)
    assert len(names(source)) == 2


@pytest.mark.parametrize("name", ["kernels.c", "answer.h"])
def test_a_changed_source_gets_another_name(source: Path, compilers: Compilers, name: str) -> None:
    compilers.add("cc", "COMPILE")
    before = compiled(SMALL)
    file = source / name
    file.write_text(file.read_text().replace("ANSWER 42", "ANSWER 43") + "/* changed */\n")
    assert compiled(SMALL) != before
    assert answer() == (43 if name == "answer.h" else 42)
    assert compilers.runs == ["cc", "cc"]


def test_changed_flags_get_another_name(source: Path, compilers: Compilers) -> None:
    compilers.add("cc", "COMPILE")
    assert compiled(Build("SMALL", (), ("-DOTHER",))) != compiled(SMALL)


def test_no_compiler_is_a_reason_in_words(source: Path, compilers: Compilers) -> None:
    with pytest.raises(KernelsUnavailable, match="no C compiler"):
        load(SMALL)


def test_what_is_compiled_needs_no_compiler(source: Path, compilers: Compilers) -> None:
    compilers.add("cc", "COMPILE")
    compiled(SMALL)
    compilers.add("cc", "exit 1")
    assert answer() == 42


def test_a_compiler_that_fails_is_a_reason_in_words(
    source: Path, compilers: Compilers, caplog: pytest.LogCaptureFixture
) -> None:
    compilers.add("cc", "echo 'no such header' >&2; exit 1")
    with pytest.raises(KernelsUnavailable, match="cc failed; the log has its messages"):
        load(SMALL)
    assert "no such header" in caplog.text
    assert names(source) == set()  # nothing half made is left


def test_an_error_in_the_source_is_a_reason_in_words(
    source: Path, compilers: Compilers, caplog: pytest.LogCaptureFixture
) -> None:
    compilers.add("cc", "COMPILE")
    (source / "kernels.c").write_text("int f(void) { return nothing; }\n")
    with pytest.raises(KernelsUnavailable, match="failed"):
        load(SMALL)
    assert "nothing" in caplog.text
    assert names(source) == set()


def test_the_next_compiler_is_tried(source: Path, compilers: Compilers) -> None:
    compilers.add("cc", "exit 1")
    compilers.add("clang", "COMPILE")
    assert answer() == 42
    assert compilers.runs == ["cc", "clang"]


def test_a_compiler_that_hangs_is_stopped(
    source: Path, compilers: Compilers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "COMPILE_TIMEOUT_S", 0.2)
    compilers.add("cc", f"exec {shutil.which('sleep', path=os.environ['REAL_PATH'])} 60")
    with pytest.raises(KernelsUnavailable, match="took more than"):
        load(SMALL)
    assert names(source) == set()


def test_a_library_that_does_not_load_is_a_reason_in_words(source: Path, compilers: Compilers) -> None:
    compilers.add("cc", 'for last; do :; done; echo "no library" > "$last"')
    with pytest.raises(KernelsUnavailable, match="does not load"):
        load(SMALL)


def make_read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As everybody but the superuser finds it."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and access(path, mode))


def test_beside_a_source_that_is_read_only_a_folder_of_the_user_is_used(
    source: Path, compilers: Compilers, monkeypatch: pytest.MonkeyPatch
) -> None:
    compilers.add("cc", "COMPILE")
    make_read_only(source, monkeypatch)
    assert [answer(), answer()] == [42, 42]
    assert compilers.runs == ["cc"]
    assert names(source) == set()
    folder = compiled(SMALL).parent
    assert folder.parent == Path(tempfile.gettempdir())
    assert folder.stat().st_mode & 0o077 == 0  # for the user alone
    assert names(folder) == {compiled(SMALL).name}


def test_a_folder_that_cannot_be_made_is_a_reason_in_words(
    source: Path, compilers: Compilers, monkeypatch: pytest.MonkeyPatch
) -> None:
    compilers.add("cc", "COMPILE")
    make_read_only(source, monkeypatch)
    (Path(tempfile.gettempdir()) / f"protein-embedding-kernels-{os.getuid()}").write_text("")
    with pytest.raises(KernelsUnavailable, match="the kernels cannot be compiled"):
        load(SMALL)


def test_code_in_anothers_folder_is_not_loaded(
    source: Path, compilers: Compilers, monkeypatch: pytest.MonkeyPatch
) -> None:
    compilers.add("cc", "COMPILE")
    make_read_only(source, monkeypatch)
    folder = compiled(SMALL).parent
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    folder.rename(folder.with_name(f"protein-embedding-kernels-{os.getuid()}"))
    with pytest.raises(KernelsUnavailable, match="no folder"):
        load(SMALL)


def test_code_behind_a_link_is_not_loaded(
    source: Path, compilers: Compilers, monkeypatch: pytest.MonkeyPatch
) -> None:
    compilers.add("cc", "COMPILE")
    make_read_only(source, monkeypatch)
    folder = compiled(SMALL).parent
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))
    with pytest.raises(KernelsUnavailable, match="no folder"):
        load(SMALL)


def test_a_library_that_is_being_made_is_not_found(source: Path, compilers: Compilers) -> None:
    half = 'for last; do :; done; echo half > "$last"'
    compilers.add("cc", f"{half}; for made in {source}/*.so; do [ -e $made ] && exit 1; done; COMPILE")
    assert answer() == 42


LOAD_SMALL = f"""
import sys
from pathlib import Path
from models.kernels import library
library.SOURCE = Path(sys.argv[1])
assert library.load(library.Build("SMALL", (), ())).attention(*{NO_ARGUMENTS}) == 42
"""


def test_two_processes_that_compile_at_once_both_have_a_library(source: Path, compilers: Compilers) -> None:
    """Each compiler waits for the other to begin, for ten seconds at most."""
    compilers.add(
        "cc",
        f"""PATH="$REAL_PATH"
for i in $(seq 200); do [ $(wc -l < {source.parent}/bin/runs) -ge 2 ] && break; sleep 0.05; done
COMPILE""",
    )
    command = [sys.executable, "-c", LOAD_SMALL, str(source)]
    both = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert compilers.runs == ["cc", "cc"]
    assert names(source) == {compiled(SMALL).name}


@pytest.mark.parametrize(
    ("lacking", "name"),
    [((), "AMX"), (("amx_tile",), "AVX512-BF16"), (("amx_bf16",), "AVX512-BF16")],
)
def test_a_processor_gets_the_best_build_that_it_runs(
    lacking: tuple[str, ...], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = {flag: flag not in lacking for flag in BUILDS["AMX"].needs}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert choose_build() is BUILDS[name]


@pytest.mark.parametrize("lacking", BUILDS["AVX512-BF16"].needs)
def test_a_processor_that_lacks_any_instruction_gets_none(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    has = {flag: True for flag in BUILDS["AMX"].needs if flag != lacking}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    with pytest.raises(KernelsUnavailable, match="the processor has no AVX512-BF16"):
        choose_build()


def test_tiles_that_the_system_refuses_are_a_reason_in_words(
    source: Path, compilers: Compilers, monkeypatch: pytest.MonkeyPatch
) -> None:
    compilers.add("cc", "COMPILE")
    monkeypatch.setattr(library, "_XFEATURE_XTILEDATA", 63)  # no processor has this feature
    with pytest.raises(KernelsUnavailable, match="does not let this process use AMX tiles"):
        load(BUILDS["AMX"])


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("linux", "aarch64"), ("win32", "x86_64")])
def test_other_systems_and_processors_have_none(
    system: str, machine: str, source: Path, compilers: Compilers, monkeypatch: pytest.MonkeyPatch
) -> None:
    compilers.add("cc", "COMPILE")
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(KernelsUnavailable, match=f"no kernels for {machine} on {system}"):
        compiled(SMALL)


@pytest.mark.parametrize("name", BUILDS)
def test_our_source_compiles_without_a_warning(name: str, source: Path, tmp_path: Path) -> None:
    """For either build, whatever the processor."""
    if next(iter(library.compilers()), None) is None:
        pytest.skip("no C compiler")
    for path in (ROOT / "models" / "kernels").glob("*.[ch]"):
        shutil.copy(path, source)
    (source / "kernels.c").unlink()
    build = BUILDS[name]
    strict = Build(build.name, build.needs, (*build.flags, "-Werror"))
    assert compiled(strict).stat().st_size > 10_000
