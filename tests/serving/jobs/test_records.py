"""What is known of a job: ids, fields as Redis keeps them, rates."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from serving.jobs.records import Job, Order, Progress, State, born_at, is_id, new_id
from serving.jobs.schemas import JobOptions
from tests.serving.jobs.conftest import order

SHORTEST = {"state": "queued", "submitted_at": "1795236543.123456"}


def record(*parts: dict[str, Any]) -> dict[bytes, bytes]:
    """As Redis returns a hash."""
    return {name.encode(): str(value).encode() for part in parts for name, value in part.items()}


def running(order: Order = order(num_sequences=100), **fields: Any) -> Job:
    """A job of 1000 residues that was taken at second 100, when 200 of them were done."""
    taken = {"state": "running", "submitted_at": 50, "run_at": 100, "run_residues": 200, "residues": 200}
    return Job.from_hash(order.id, record(order.to_fields(), taken | fields))


def test_an_id_is_not_guessed_and_tells_when_it_was_made() -> None:
    before = int(time.time())
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(is_id(job_id) and before <= born_at(job_id) <= time.time() for job_id in ids)
    assert len({job_id.partition("_")[2] for job_id in ids}) == 100


@pytest.mark.parametrize("form", ["", "{}\n", " {}", "{}:parts", "../{}", "x{}"])
def test_what_is_no_id_is_told_from_one(form: str) -> None:
    assert not is_id(form.format(new_id()))


def test_what_was_asked_for_is_kept_exactly() -> None:
    options = JobOptions(pooled=False, dtype="float32", max_length=300, on_too_long="window", format="h5")
    wanted = replace(order(owner="ünï : 蛋白"), options=options, num_residues=10**12)
    job = Job.from_hash(wanted.id, record(wanted.to_fields(), Progress().to_fields(), SHORTEST))
    assert (job.order, job.progress, job.state) == (wanted, Progress(), "queued")
    assert job.submitted_at == 1795236543.123456


def test_how_far_it_came_is_kept_exactly() -> None:
    progress = Progress(next=7, offset=10**11, residues=10**10, num_cached=3, num_failed=2, precision="bf16+fp32")
    job = Job.from_hash("id", record(order().to_fields(), progress.to_fields(), SHORTEST))
    assert job.progress == progress


def test_a_job_that_nothing_has_happened_to_has_no_times_and_no_result() -> None:
    job = Job.from_hash("id", record(order().to_fields(), SHORTEST))
    assert (job.started_at, job.ended_at, job.run_at) == (None, None, None)
    assert (job.num_done, job.num_residues_done, job.tries) == (0, 0, 0)
    assert (job.reason, job.result, job.result_bytes, job.is_expired) == ("", "", 0, False)


def test_what_is_under_way_counts_as_done() -> None:
    job = running(next=20, live_sequences=5, live_residues=50)
    assert (job.num_done, job.num_residues_done) == (25, 250)


def test_the_rate_is_that_of_the_worker_that_has_it() -> None:
    job = running(residues=300, live_residues=100)
    assert job.residues_per_s(now=104) == 50, "200 residues in 4 s; the 200 of before are not its own"
    assert job.eta_s(now=104) == 12


@pytest.mark.parametrize(
    "job",
    [running(), running(residues=100), running(run_at=104, residues=300), running(run_at=200, residues=300)],
    ids=["nothing done", "less than before", "no time", "clocks that differ"],
)
def test_there_is_no_rate_before_anything_is_done(job: Job) -> None:
    assert (job.residues_per_s(now=104), job.eta_s(now=104)) == (None, None)


@pytest.mark.parametrize("state", ["queued", "done", "failed", "cancelled"])
def test_who_is_not_running_has_no_rate(state: State) -> None:
    assert running(state=state, residues=300).eta_s(now=104) is None


def test_where_sequences_failed_the_end_is_not_behind_us() -> None:
    job = running(residues=1200)  # it cannot be, but the reply has no number below 0
    assert job.eta_s(now=104) == 0
