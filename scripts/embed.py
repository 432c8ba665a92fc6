"""Embeds the proteins of a FASTA file (plain or gzip): as a job of the service, or with --local without one.

    python -m scripts.embed proteins.fasta -o proteins.h5 --model esm2_t33_650M
    python -m scripts.embed proteins.fasta -o proteins.h5 --model esm2_t33_650M --local
    python -m scripts.embed --job ID -o proteins.h5     waits for a job that is there, and fetches its result
    python -m scripts.embed --job ID --cancel

A service with keys gets the one in the environment variable API_KEY: command lines can be read by others.

Ctrl-C leaves the job running and prints the command to come back with. A download that was cut off goes on where
it was. Sequences that cannot be embedded are named, and do not stop the others.

Exit status: 0 if the job is done, 1 if it is not, 2 for a command that makes no sense, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from models.catalogue import UnknownModel
from models.configs import CheckpointError
from models.failures import NoDevice
from scripts.embedding.arguments import FORMATS, parse
from scripts.embedding.progress import Progress
from scripts.embedding.remote import GaveUp, Refused, RemoteJobs
from serving.errors import Problem, ServiceError
from serving.jobs.schemas import JobError, JobStatus, JobSubmitted
from serving.jobs.submission import Contents
from serving.runners import UNTRAINED_WARNING
from serving.settings import SettingsError, load_settings

MAX_NAMED = 5  # sequences that cannot be embedded; the file names all of them
USAGE, INTERRUPTED = 2, 130
# Errors that are told in one line
KNOWN = (Refused, GaveUp, ServiceError, UnknownModel, CheckpointError, NoDevice, SettingsError, OSError)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments, __doc__)
    try:
        if options.cancel:
            status = _cancel(options)
        elif options.local:
            status = _embed_here(options)
        else:
            status = _run_job(options)
    except KeyboardInterrupt:
        status = _fail("stopped", INTERRUPTED)
    except KNOWN as error:
        status = _fail(str(error))
    sys.exit(status)


def _cancel(options: argparse.Namespace) -> int:
    with RemoteJobs(options.url, _warn, options.key) as jobs:
        job = jobs.cancel(options.job)
    print(f"job {job.job_id}: {job.status}")
    return 0 if job.status == "cancelled" else 1


def _run_job(options: argparse.Namespace) -> int:
    """Submits a job unless there is one, waits for it, fetches its result."""
    with Progress() as progress, RemoteJobs(options.url, progress.note, options.key) as jobs:
        num_named, job_id = 0, options.job
        try:
            if job_id is None:
                submitted = _submit(options, jobs, progress)
                num_named, job_id = submitted.num_invalid, submitted.job_id
                print(f"job {job_id}: {_count(submitted)}", flush=True)
                _name_problems(num_named, submitted.num_sequences, submitted.invalid)
            return _fetch(options, job_id, num_named, jobs, progress)
        except KeyboardInterrupt:
            why, status = "stopped", INTERRUPTED
        except (GaveUp, OSError) as error:
            if job_id is None:
                raise
            why, status = str(error), 1
        progress.clear()
        if job_id is None:
            return _fail(
                f"{why}; the service may have the job all the same, see {options.url}/embeddings/jobs", status
            )
        return _fail(f"{why}; the job goes on. To come back:\n{_command(options, job_id)}", status)


def _submit(options: argparse.Namespace, jobs: RemoteJobs, progress: Progress) -> JobSubmitted:
    query = options.wanted.model_dump(exclude_none=True) | {"model": options.model}
    size_bytes = options.fasta.stat().st_size
    submitted = jobs.submit(options.fasta, query, lambda sent: progress.show("sending", sent, size_bytes, "bytes"))
    progress.clear()
    return submitted


def _fetch(options: argparse.Namespace, job_id: str, num_named: int, jobs: RemoteJobs, progress: Progress) -> int:
    """Waits for a job and fetches its result. num_named: sequences without embedding that were named before."""
    first = jobs.status(job_id)
    if first.options.format != options.format:
        return _fail(f"the result of job {job_id} is {first.options.format}, not {options.format}", USAGE)
    job = jobs.follow(job_id, lambda job: _show(job, progress))
    if job.status != "done":
        return _fail(f"job {job_id} was cancelled" if job.status == "cancelled" else f"job {job_id}: {job.reason}")
    if job.size_bytes is None:
        return _fail(f"job {job_id} was done, and its result has expired")
    size_bytes = job.size_bytes
    part, etag = _unfinished(options.output)
    with _claimed(part) as file:
        jobs.fetch(job, file, etag, lambda done: progress.show("fetching", done, size_bytes, "bytes"))
        part.replace(options.output)
    etag.unlink(missing_ok=True)
    progress.clear()
    found = job.progress
    if found.failed > num_named:
        _name_problems(found.failed, found.total_sequences, job.errors)
    cached = f"; {found.cached_share:.0%} were in the cache"
    print(_summary(options.output, found.total_sequences, found.failed) + cached)
    return 0


def _show(job: JobStatus, progress: Progress) -> None:
    found = job.progress
    state = f"{job.status} ({job.reason})" if job.reason else job.status
    progress.show(state, found.residues, found.total_residues, "residues", found.residues_per_s)


def _embed_here(options: argparse.Namespace) -> int:
    """The same without a service."""
    from scripts.embedding.engines import LocalEngines, resolve  # torch takes seconds to import
    from scripts.embedding.local import LocalJob

    settings, stored = load_settings(), resolve(options.model)
    part, etag = _unfinished(options.output)
    with Progress() as progress, LocalJob(options.fasta, stored, options.wanted, settings) as job:
        contents = job.contents
        print(f"{options.fasta}: {_count(contents)}", flush=True)
        _name_problems(contents.num_invalid, contents.num_sequences, contents.problems)
        if not stored.is_trained:
            _warn(f"{stored.tag}: {UNTRAINED_WARNING}")
        with _claimed(part), LocalEngines(stored, settings) as engines:
            etag.unlink(missing_ok=True)  # of a download that was cut off
            total = contents.num_residues
            errors = job.embed(engines, part, lambda done: progress.show("running", done, total, "residues"))
            part.replace(options.output)
    if len(errors) > contents.num_invalid:
        problems = [Problem(index, reason) for index, reason in errors.items()]
        _name_problems(len(errors), contents.num_sequences, problems)
    print(_summary(options.output, contents.num_sequences, len(errors)))
    return 0


def _unfinished(output: Path) -> tuple[Path, Path]:
    """Where a file is until it is finished, and where it is said of which result that is a part."""
    return output.with_name(f"{output.name}.part"), output.with_name(f"{output.name}.part.etag")


@contextlib.contextmanager
def _claimed(part: Path) -> Iterator[BinaryIO]:
    """An unfinished file, open for appending, for this process alone.

    Raises:
        Refused: another process has it.
    """
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = os.path.samestat(part.stat(), os.fstat(file.fileno()))
        except (BlockingIOError, FileNotFoundError):
            is_ours = False
        if not is_ours:
            raise Refused(f"another command is writing {part}")
        try:
            yield file
        finally:
            if not os.fstat(file.fileno()).st_size:
                part.unlink(missing_ok=True)


def _count(contents: Contents | JobSubmitted) -> str:
    cut = f", {contents.num_truncated} cut off" if contents.num_truncated else ""
    return f"{contents.num_sequences} sequences, {contents.num_residues} residues{cut}"


def _name_problems(num: int, num_sequences: int, problems: Sequence[Problem | JobError]) -> None:
    """The first sequences that have no embedding."""
    if not num:
        return
    _warn(f"{num} of {num_sequences} sequences cannot be embedded:")
    for problem in problems[:MAX_NAMED]:
        name = f" ({problem.id})" if problem.id else ""
        _warn(f"  sequence {problem.index}{name}: {problem.reason}")
    if num > MAX_NAMED:
        _warn(f"  and {num - MAX_NAMED} more; the result names them all")


def _summary(output: Path, num_sequences: int, num_failed: int) -> str:
    failed = f" ({num_failed} failed)" if num_failed else ""
    size = tqdm.format_sizeof(output.stat().st_size)
    return f"{output}: {num_sequences - num_failed} embeddings{failed}, {size}B"


def _command(options: argparse.Namespace, job_id: str) -> str:
    """Which waits for a job and fetches its result."""
    words = ["python", "-m", "scripts.embed", "--job", job_id, "-o", str(options.output), "--url", options.url]
    if options.output.suffix.lower() not in FORMATS:
        words += ["--format", options.format]
    return shlex.join([*words, "--force"] if options.force else words)


def _fail(why: str, status: int = 1) -> int:
    _warn(f"embed: {why}")
    return status


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
