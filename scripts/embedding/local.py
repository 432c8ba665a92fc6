"""A job without a service: its rules, its arithmetic, its file."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from models.planning import cost
from scripts.embedding.engines import LocalEngines, Outcome, StoredModel
from serving.errors import InferenceFailed, InvalidRequest
from serving.jobs.records import new_id
from serving.jobs.schemas import JobOptions
from serving.jobs.store import Entry, JobStore
from serving.jobs.submission import Contents, write_input
from serving.parts import MIN_WINDOW, Options, cut
from serving.results import Result, write
from serving.sequences import Limits
from serving.settings import Settings
from serving.uploads import Upload

# Of embeddings that are computed at once, while as many are written
WINDOW_BYTES = 256_000_000


class LocalJob:
    """A FASTA file, checked as the service checks a job; its cleaned sequences are kept in a temporary folder.

    Raises:
        ServiceError: as the service refuses a job.
    """

    def __init__(self, fasta: Path, stored: StoredModel, wanted: JobOptions, settings: Settings) -> None:
        limits = _limits(wanted, settings)
        self._stored, self._wanted = stored, wanted
        self._options = Options(
            wanted.pooled, wanted.dtype, limits.max_length if wanted.on_too_long == "window" else None
        )
        self._folder = tempfile.TemporaryDirectory(prefix="pes-embed-")
        self._store = JobStore(self._folder.name, scratch=Path(self._folder.name))
        self._id = new_id()
        try:
            with fasta.open("rb") as file:
                upload = Upload(file, "fasta", sys.maxsize)
                self.contents: Contents = write_input(
                    upload, self._store, self._id, stored.model, limits, wanted.format
                )
        except BaseException:
            self._folder.cleanup()
            raise

    def __enter__(self) -> LocalJob:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def embed(self, engines: LocalEngines, path: Path, show: Callable[[int], None]) -> dict[int, str]:
        """Writes the file of results; where that fails, nothing is left of it.

        Args:
            show: is told after each sequence how many residues are done.
        Returns:
            Why sequences have no embedding, by index.
        Raises:
            OSError: the file cannot be written.
            NoDevice: every device was lost.
        """
        errors: dict[int, str] = {}
        about = self._describe(engines.precision)
        write(path, self._wanted.format, self._results(engines, show, errors), about)
        return errors

    def _results(
        self, engines: LocalEngines, show: Callable[[int], None], errors: dict[int, str]
    ) -> Iterator[Result]:
        num_residues = 0
        for index, (entry, outcome) in enumerate(self._computed(engines)):
            if isinstance(outcome, Exception):
                errors[index] = str(outcome)
                yield Result(entry.id, entry.length, None, errors[index])
            else:
                num_residues += entry.length
                yield Result(entry.id, entry.length, outcome)
            show(num_residues)

    def _computed(self, engines: LocalEngines) -> Iterator[tuple[Entry, Outcome]]:
        """Every sequence in order, and what came of it. While a window is written, the next one is computed."""
        before: tuple[list[Entry], Future[list[Outcome]]] | None = None
        for entries in self._windows(engines.window_tokens):
            sequences = [entry.sequence for entry in entries if entry.sequence is not None]
            now = entries, engines.embed(sequences, self._options)
            if before is not None:
                yield from _with_outcomes(*before)
            before = now
        if before is not None:
            yield from _with_outcomes(*before)

    def _windows(self, most_tokens: int) -> Iterator[list[Entry]]:
        entries: list[Entry] = []
        tokens = size_bytes = 0
        for entry, _ in self._store.entries(self._id):
            tokens += self._cost(entry)
            size_bytes += self._size_bytes(entry)
            if entries and (tokens > most_tokens or size_bytes > WINDOW_BYTES):
                yield entries
                entries, tokens, size_bytes = [], self._cost(entry), self._size_bytes(entry)
            entries.append(entry)
        yield entries

    def _cost(self, entry: Entry) -> int:
        spans = cut(entry.length, self._options.window) if entry.sequence is not None else []
        return sum(cost(span.stop - span.start, self._stored.model.dim) for span in spans)

    def _size_bytes(self, entry: Entry) -> int:
        """Of what is held for a sequence: its embedding, or the embeddings of its windows."""
        if entry.sequence is None:
            return 0
        spans = cut(entry.length, self._options.window)
        dtype, num_rows = self._options.dtype, 1 if self._options.pooled else entry.length
        if len(spans) > 1:
            dtype, num_rows = "float32", sum(span.stop - span.start for span in spans)
        size_bytes: int = num_rows * self._stored.model.dim * np.dtype(dtype).itemsize
        return size_bytes

    def _describe(self, precision: str) -> dict[str, Any]:
        """As a job's file says it of itself (serving/jobs/worker.py), but for the job's id."""
        wanted, truncated_from = self._wanted, {}
        if wanted.on_too_long == "truncate":
            entries = (entry for entry, _ in self._store.entries(self._id))
            truncated_from = {e.id: e.truncated_from for e in entries if e.truncated_from is not None}
        return {
            "model": self._stored.model.name,
            "tag": self._stored.tag,
            "trained": self._stored.is_trained,
            "precision": precision,
            "dtype": wanted.dtype,
            "dim": self._stored.model.dim,
            "layer": "last",
            "pooled": wanted.pooled,
            "pooling": "mean over residues" if wanted.pooled else "none: one row a residue",
            "on_too_long": wanted.on_too_long,
            "window": self._options.window,
            "truncated_from": truncated_from,
        }


def _with_outcomes(entries: Sequence[Entry], computed: Future[list[Outcome]]) -> Iterator[tuple[Entry, Outcome]]:
    outcomes = iter(computed.result())
    for entry in entries:
        yield entry, InferenceFailed(entry.error) if entry.sequence is None else next(outcomes)


def _limits(wanted: JobOptions, settings: Settings) -> Limits:
    """As serving/gateway.py has them, but for the number of sequences: here nobody else waits.

    Raises:
        InvalidRequest: `max_length` is out of bounds.
    """
    least, most = settings.min_sequence_length, settings.max_sequence_length
    max_length = wanted.max_length or most
    if not least <= max_length <= most:
        raise InvalidRequest(f"max_length: {max_length} is not in {least}-{most}")
    if wanted.on_too_long == "window" and max_length < min(MIN_WINDOW, most):
        raise InvalidRequest(f"max_length: {max_length}; windows have {MIN_WINDOW} residues at least")
    return Limits(least, max_length, sys.maxsize, wanted.on_too_long)
