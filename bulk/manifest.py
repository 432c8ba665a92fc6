"""What a run has done so far: a header with its settings, then a line for each shard that is there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, BinaryIO

from bulk.folder import Folder
from bulk.plan import Failure
from serving.errors import InvalidRequest

NAME = "manifest.jsonl"
WRITE_EVERY_S = 20.0  # to a place where nothing can be appended


class CannotResume(InvalidRequest):
    """The output is of another model, input or setting, or is there already."""


@dataclass(frozen=True)
class Shard:
    """A shard that is there.

    num_residues: of sequences that were computed or cached, equal ones once. num_letters: of the input, for every
    id and for what failed. digest: of the block, which is input alone (bulk/plan.py). content: sha256 of the file.
    num_tokens: computed, special ones included; num_padded: what batches of the same sequences would have had
    with padding. num_cached: sequences that the service's cache had. busy_s: of an actor. precision: of products.
    """

    index: int
    name: str
    digest: str
    content: str
    size_bytes: int
    num_ids: int
    num_sequences: int
    num_residues: int
    num_letters: int
    num_tokens: int
    num_padded: int
    num_cached: int
    busy_s: float
    precision: str
    failures: list[Failure] = field(default_factory=list)

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Shard:
        return cls(**{**line, "failures": [Failure(**failure) for failure in line["failures"]]})


class Manifest:
    """Of an output folder, new or old.

    Args:
        about: settings, model and input; whether a run may go on is whether they are equal.
        may_resume: an old one is gone on with.
    Raises:
        CannotResume: there is one, and it may not be gone on with; or what is there is no manifest.
    """

    def __init__(self, folder: Folder, about: Mapping[str, Any], may_resume: bool) -> None:
        self._folder = folder
        self._header = json.loads(json.dumps(dict(about)))
        self.shards: dict[int, Shard] = {}
        content = folder.read(NAME)
        if content is None:
            if any(name.startswith("shard-") for name in folder.names()):
                raise CannotResume(f"{folder.path} holds shards without a manifest; name another folder")
            content = _line(self._header)
            folder.write(NAME, lambda path: path.write_bytes(content or b""))
        elif not may_resume:
            raise CannotResume(f"{folder.path} has a run in it; --resume goes on with it")
        whole = content[: content.rfind(b"\n") + 1]  # a line that was being written is none
        lines = [json.loads(line) for line in whole.splitlines()]
        if not lines:
            raise CannotResume(f"{folder.path}/{NAME} is no manifest")
        self._check(lines[0])
        for line in lines[1:]:
            shard = Shard.of(line)
            if folder.size(shard.name) == shard.size_bytes:
                self._keep(shard)
        self._file: BinaryIO | None = None
        if folder.is_local:
            self._file = open(folder.at(NAME), "r+b")  # noqa: SIM115
            self._file.truncate(len(whole))
            self._file.seek(len(whole))
        self._written = time.monotonic()

    def _check(self, found: Mapping[str, Any]) -> None:
        names = sorted(found.keys() | self._header.keys())
        differing = [name for name in names if found.get(name) != self._header.get(name)]
        if differing:
            told = ", ".join(f"{name} {found.get(name)!r}, now {self._header.get(name)!r}" for name in differing)
            raise CannotResume(f"{self._folder.path} was begun otherwise: {told}")

    def add(self, shard: Shard) -> None:
        """Notes a shard whose file is there."""
        self._keep(shard)
        if self._file is not None:
            self._file.write(_line(asdict(shard)))
            self._file.flush()
            os.fsync(self._file.fileno())
        elif time.monotonic() - self._written >= WRITE_EVERY_S:
            self._write()

    def failures(self) -> Iterator[Failure]:
        """Of all shards that are there, in the order of the input's windows."""
        if self._file is None:
            for shard in self.shards.values():
                yield from shard.failures
            return
        with open(self._folder.at(NAME), "rb") as file:
            next(file)
            for text in file:
                line = json.loads(text)
                known = self.shards.get(line["index"])
                if known is not None and known.content == line["content"]:
                    yield from Shard.of(line).failures

    def _keep(self, shard: Shard) -> None:
        """What fails is read again from the file, where there is one: it may be much."""
        self.shards[shard.index] = replace(shard, failures=[]) if self._folder.is_local else shard

    def close(self) -> None:
        """Raises OSError: it cannot be written."""
        if self._file is not None:
            self._file.close()
        else:
            self._write()

    def _write(self) -> None:
        content = _line(self._header) + b"".join(_line(asdict(each)) for each in self.shards.values())
        self._folder.write(NAME, lambda path: path.write_bytes(content))
        self._written = time.monotonic()


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"
