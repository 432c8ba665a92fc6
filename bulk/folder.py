"""The folder of a run's output, on any place that fsspec knows: files are there whole, or not at all."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

TEMPORARY = ".unfinished-"


class Folder:
    """place: a path or URL."""

    def __init__(self, place: str) -> None:
        self._fs, self.path = fsspec.core.url_to_fs(place)
        self.is_local = isinstance(self._fs, LocalFileSystem)

    def make(self) -> None:
        """Raises OSError: it cannot be made."""
        self._fs.makedirs(self.path, exist_ok=True)

    def at(self, name: str) -> str:
        """The path of a file, as the file system takes it."""
        return f"{self.path}/{name}"

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it is not there."""
        try:
            return int(self._fs.info(self.at(name))["size"])
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes | None:
        """A file's content; None if it is not there."""
        try:
            content: bytes = self._fs.cat_file(self.at(name))
        except FileNotFoundError:
            return None
        return content

    def names(self) -> list[str]:
        return sorted(path.rpartition("/")[2] for path in self._fs.ls(self.path, detail=False))

    def remove(self, name: str) -> None:
        self._fs.rm_file(self.at(name))

    def remove_unfinished(self) -> None:
        """What runs left that were killed."""
        for name in self.names():
            if name.startswith(TEMPORARY):
                self.remove(name)

    def write(self, name: str, make: Callable[[Path], Any]) -> int:
        """Has `make` write a file to a path of this machine, then gives it its name in one step.

        Returns:
            Its bytes.
        Raises:
            OSError: it could not be written; under its name nothing has changed.
        """
        # Unique: an actor that was given up may still be writing the same shard
        unfinished = f"{TEMPORARY}{uuid.uuid4().hex}-{name}"
        if self.is_local:
            path = Path(self.at(unfinished))
            try:
                make(path)
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                size_bytes = path.stat().st_size
                os.replace(path, self.at(name))
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            return size_bytes
        with tempfile.TemporaryDirectory(prefix="pes-bulk-") as scratch:
            path = Path(scratch, name)
            make(path)
            self._fs.put_file(str(path), self.at(unfinished))
            self._fs.mv(self.at(unfinished), self.at(name))
            return path.stat().st_size
