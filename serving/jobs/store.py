"""Where the files of jobs are: a local folder, or any place that fsspec reaches (`s3://bucket/prefix`).

A job has a folder of its own: its input, parts of its result while it runs, the result. A file counts once Redis
names it (serving/jobs/queue.py), so nobody ever reads one that is half written.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from serving.jobs.records import born_at, is_id
from serving.settings import SettingsError

INPUT = "input.jsonl"


@dataclass(frozen=True)
class Entry:
    """One sequence of a job, as it stands in the input.

    sequence: cleaned; None where it cannot be embedded, for which `error` is the reason.
    length: of the sequence as it was sent. truncated_from: residues it had before it was cut off.
    """

    id: str
    length: int
    sequence: str | None
    error: str | None = None
    truncated_from: int | None = None

    def to_line(self) -> bytes:
        fields = [self.id, self.length, self.sequence, self.error, self.truncated_from]
        return json.dumps(fields, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Entry:
        return cls(*json.loads(line))


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    """Every place has errors of its own: not all of fsspec's are OSErrors, as who waits for a place expects."""
    try:
        yield
    except (OSError, AssertionError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


@_reaching()
def _next_line(file: BinaryIO) -> bytes:
    return file.readline()


class JobStore:
    """The files of all jobs. Its methods block, so they are called from threads; a place that fails is an OSError.

    Args:
        url: of the place; a path, or a URL that fsspec knows.
        scratch: local folder in which results are put together where the place is not a local one.
    Raises:
        SettingsError: the place cannot be reached.
    """

    def __init__(self, url: str, scratch: Path) -> None:
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise SettingsError(f"OUTPUT_URL: {error}") from None
        self._root = str(root).rstrip("/")
        self._scratch = scratch
        self._is_local = isinstance(self._fs, LocalFileSystem)

    def check(self) -> None:
        """Tries to write there.

        Raises:
            SettingsError: it cannot be written.
        """
        path = f"{self._root}/.writable"
        try:
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(path, b"")
            self._fs.rm_file(path)
        except Exception as error:  # every place has errors of its own
            raise SettingsError(f"OUTPUT_URL: cannot be written ({type(error).__name__}: {error})") from None

    @contextlib.contextmanager
    def writing_input(self, job_id: str) -> Iterator[BinaryIO]:
        """The input of a new job, to be written line by line."""
        with _reaching():
            self._fs.makedirs(f"{self._root}/{job_id}", exist_ok=True)
            opened = self._fs.open(self._path(job_id, INPUT), "wb")
        with opened as file:
            yield file

    def entries(self, job_id: str, offset: int = 0) -> Generator[tuple[Entry, int]]:
        """Sequences of a job from a place in its input on, each with the place behind it."""
        with self.open(job_id, INPUT) as file:
            file.seek(offset)
            while line := _next_line(file):
                offset += len(line)
                yield Entry.from_line(line), offset

    @_reaching()
    def write(self, job_id: str, name: str, content: bytes) -> None:
        self._fs.pipe_file(self._path(job_id, name), content)

    @_reaching()
    def read(self, job_id: str, name: str) -> bytes:
        content: bytes = self._fs.cat_file(self._path(job_id, name))
        return content

    @contextlib.contextmanager
    def making(self, job_id: str, name: str) -> Iterator[Path]:
        """A local path to write a file to, which is put in its place at the end."""
        if self._is_local:
            yield Path(self._path(job_id, name))
            return
        self._scratch.mkdir(parents=True, exist_ok=True)
        path = self._scratch / f"{job_id}-{name}"
        try:
            yield path
            with _reaching():
                self._fs.put_file(str(path), self._path(job_id, name))
        finally:
            path.unlink(missing_ok=True)

    def local_path(self, job_id: str, name: str) -> Path | None:
        """Of a file, where the place is a local one."""
        return Path(self._path(job_id, name)) if self._is_local else None

    @_reaching()
    def open(self, job_id: str, name: str) -> BinaryIO:
        file: BinaryIO = self._fs.open(self._path(job_id, name), "rb")
        return file

    @_reaching()
    def size(self, job_id: str, name: str) -> int:
        size_bytes: int = self._fs.size(self._path(job_id, name))
        return size_bytes

    @_reaching()
    def keep_only(self, job_id: str, name: str) -> None:
        """Deletes every file of a job but one."""
        for path in self._fs.ls(self._folder(job_id), detail=False):
            if path.rpartition("/")[2] != name:
                self._fs.rm_file(path)

    @_reaching()
    def delete(self, job_id: str) -> None:
        """Deletes every file of a job, if there is any."""
        folder = self._folder(job_id)
        if self._is_local:
            shutil.rmtree(folder, ignore_errors=True)
            return
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(folder, recursive=True)

    @_reaching()
    def older_than(self, age_s: float) -> Sequence[str]:
        """Jobs that have files here and were begun so long ago."""
        self._fs.invalidate_cache()
        try:
            paths = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        ids = [path.rstrip("/").rpartition("/")[2] for path in paths]
        return [i for i in ids if is_id(i) and time.time() - born_at(i) > age_s]

    def _folder(self, job_id: str) -> str:
        assert is_id(job_id)
        return f"{self._root}/{job_id}"

    def _path(self, job_id: str, name: str) -> str:
        return f"{self._folder(job_id)}/{name}"
