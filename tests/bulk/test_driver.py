"""Whole runs on an embedded Ray: their values, and what becomes of actors that die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from bulk.driver import Driver, Progress
from bulk.folder import Folder
from bulk.manifest import Manifest
from bulk.plan import blocks
from bulk.pool import Pool, PoolSize, Writer
from bulk.twins import Twins
from bulk.workload import Worker, Workload
from models.engine import Engine
from serving.sequences import Record
from tests.bulk.conftest import Make
from tests.models.references import embed, random_sequence

pytestmark = pytest.mark.usefixtures("embedded_ray")

RECORDS = [Record(f"p{n}", random_sequence(20 + 3 * n, seed=n)) for n in range(30)]
DEADLY = RECORDS[7].sequence
DEADLINE_S = 60


class Dying(Writer):
    """Its process ends of one sequence."""

    def _embed(self, sequences: Sequence[str]) -> list[np.ndarray | Exception]:
        if DEADLY in sequences:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._embed(sequences)


class DyingOnce(Writer):
    """The first process that computes ends in the midst of it."""

    def _embed(self, sequences: Sequence[str]) -> list[np.ndarray | Exception]:
        mark = Path(self._folder.at("died"))
        if DEADLY in sequences and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._embed(sequences)


class InCompany(Writer):
    """Computes nothing before two processes are there."""

    def _embed(self, sequences: Sequence[str]) -> list[np.ndarray | Exception]:
        Path(self._folder.at(f"at-work-{os.getpid()}")).touch()
        give_up = time.monotonic() + DEADLINE_S
        while len(list(Path(self._folder.at("")).glob("at-work-*"))) < 2:
            assert time.monotonic() < give_up
            time.sleep(0.01)
        return super()._embed(sequences)


def run(
    output: Path,
    workload: Workload,
    weights: Path,
    kind: type[Writer] = Writer,
    num_blocks: int | None = None,
) -> tuple[Progress, Manifest]:
    """num_blocks: of which the run is cut off."""
    folder = Folder(str(output))
    folder.make()
    manifest = Manifest(folder, workload.describe(), may_resume=True)
    pool = Pool(workload, Worker(weights), str(output), PoolSize(1, 2), kind)
    planned = blocks(iter(RECORDS), workload, frozenset(), Twins())
    if num_blocks is not None:
        planned = (block for block in planned if block.index < num_blocks)
    try:
        progress = Driver(planned, manifest, pool, lambda _: None).run()
    finally:
        pool.close()
        manifest.close()
    return progress, manifest


def read(output: Path) -> dict[str, np.ndarray]:
    """Every row of every shard; no id twice."""
    found: dict[str, np.ndarray] = {}
    for path in sorted(output.glob("shard-*.parquet")):
        for row in parquet.read_table(path).to_pylist():
            assert row["id"] not in found
            found[row["id"]] = np.array(row["embedding"], np.float32)
    return found


def test_values_are_the_engines(tmp_path: Path, make_workload: Make, weights: Path) -> None:
    workload = make_workload()
    progress, _ = run(tmp_path, workload, weights)
    found = read(tmp_path)
    expected = embed(
        Engine(weights, workload.row, precision="fp32"), [record.sequence for record in RECORDS], pooled=True
    )
    assert sorted(found) == sorted(record.id for record in RECORDS)
    for record, embedding in zip(RECORDS, expected, strict=True):
        # Batches differ; in fp32 by 4e-7 at most here
        np.testing.assert_allclose(found[record.id], embedding, atol=2e-6)
    assert progress.num_residues == sum(len(record.sequence) for record in RECORDS)


def test_going_on_computes_what_is_missing_alone(tmp_path: Path, make_workload: Make, weights: Path) -> None:
    run(tmp_path, make_workload(), weights, num_blocks=4)
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")}
    (tmp_path / "shard-0000001.parquet").unlink()
    progress, manifest = run(tmp_path, make_workload(), weights)
    untouched = [path for path, time in first.items() if path.stat().st_mtime_ns == time]
    assert len(untouched) == 3
    assert sorted(read(tmp_path)) == sorted(record.id for record in RECORDS)
    assert progress.num_resumed == sum(manifest.shards[index].num_letters for index in (0, 2, 3))


def test_the_pool_grows_while_blocks_wait(tmp_path: Path, make_workload: Make, weights: Path) -> None:
    progress, _ = run(tmp_path, make_workload(), weights, InCompany)
    assert progress.utilisation.keys() == {0, 1}
    assert read(tmp_path).keys() == {record.id for record in RECORDS}


def test_a_dead_actor_is_replaced(tmp_path: Path, make_workload: Make, weights: Path) -> None:
    progress, manifest = run(tmp_path, make_workload(), weights, DyingOnce)
    assert progress.num_deaths == 1
    assert sorted(read(tmp_path)) == sorted(record.id for record in RECORDS)
    assert list(manifest.failures()) == []


def test_a_sequence_that_ends_processes_is_told_and_the_others_are_there(
    tmp_path: Path, make_workload: Make, weights: Path
) -> None:
    progress, manifest = run(tmp_path, make_workload(), weights, Dying)
    assert sorted(read(tmp_path)) == sorted(record.id for record in RECORDS if record.sequence != DEADLY)
    (shard,) = [shard for shard in manifest.shards.values() if shard.num_ids < shard.num_sequences]
    lines = (tmp_path / "manifest.jsonl").read_text()
    assert lines.count('"id":"p7"') == 1
    assert shard.num_sequences - shard.num_ids == 1
    assert progress.num_deaths == 5  # MAX_FAILURES + 1 of the block, MAX_SUSPICIONS of the sequence
