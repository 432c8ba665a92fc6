"""Cores that the process may use, by affinity, shared cores and a container's quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from models.cores import usable_cores


@pytest.fixture
def eight_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A processor of four cores with two threads each: 0 and 4 are one core, and so on."""
    for cpu in range(8):
        (tmp_path / f"cpu{cpu}").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return str(tmp_path / "cpu{}")


def test_two_threads_of_a_core_count_once(eight_threads: str, tmp_path: Path) -> None:
    assert usable_cores(tmp_path, eight_threads) == 4


def test_what_the_scheduler_forbids_does_not_count(
    eight_threads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 4, 5})
    assert usable_cores(tmp_path, eight_threads) == 2


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("200000 100000", 2), ("50000 100000", 1), ("350000 100000", 4), ("1600000 100000", 4), ("max 100000", 4)],
)
def test_a_quota_of_time_is_a_number_of_cores(eight_threads: str, tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_cores(tmp_path, eight_threads) == cores


@pytest.mark.parametrize(("quota", "cores"), [("200000", 2), ("-1", 4)])
def test_the_older_control_groups_are_read_too(eight_threads: str, tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path, eight_threads) == cores


def test_a_system_that_tells_nothing_gives_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert usable_cores(tmp_path, str(tmp_path / "nothing{}")) == 3
