"""Bodies of job submissions, spooled to a file and read block by block: what is held does not grow with them."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import RawIOBase
from itertools import chain, count, starmap
from typing import Any, BinaryIO, Literal

from isal import igzip, igzip_lib

from serving.errors import BodyTooLarge, InvalidRequest, MalformedBody
from serving.json_reader import JsonReader
from serving.sequences import MAX_WINDOWED_LENGTH, Record, default_id, read_fasta

# Of an entry of FASTA or a string of JSON, as it stands there. A sequence below this that is too long for every
# model is a wrong one among others; what is above is no protein, and the end of the upload.
MAX_CHARACTERS = 10 * MAX_WINDOWED_LENGTH
MAX_OPTIONS = 100  # members of a JSON body
_LISTS = {"sequences": ("[", "{"), "ids": ("[",)}  # members that are no options, and how they begin
_BLOCK_BYTES = 65_536
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_ERRORS: tuple[type[Exception], ...] = (
    EOFError,
    OverflowError,  # a header beyond igzip's buffer
    igzip.BadGzipFile,
    igzip_lib.IsalError,  # type: ignore[assignment]  # the stub calls it an instance
)


@dataclass(frozen=True)
class _Outline:
    """A JSON body, its lists left out. are_named: `sequences` is an object."""

    options: dict[str, Any]
    are_named: bool
    has_ids: bool


class Upload:
    """A spooled body: FASTA text or JSON, gzip or not.

    `options` and `records` raise
        MalformedBody: broken gzip, no UTF-8, no FASTA, no JSON, or an entry above MAX_CHARACTERS. Lines are
            counted from 1; bytes and characters from 0, as they are after decompression.
        InvalidRequest: a JSON body that is something else than sequences, ids and options.
        BodyTooLarge: more than `max_bytes` after decompression, of which a block at most is inflated.
    """

    def __init__(self, file: BinaryIO, kind: Literal["fasta", "json"], max_bytes: int) -> None:
        self._file = file
        self._kind = kind
        self._max_bytes = max_bytes

    def options(self) -> dict[str, Any]:
        """The members of a JSON body beside `sequences` and `ids`: scalars, as they came. Of FASTA: none."""
        return {} if self._kind == "fasta" else dict(self._outline.options)

    def records(self) -> Iterator[Record]:
        """The sequences in order, from the first. A name that is twice in {id: sequence} comes twice."""
        if self._kind == "fasta":
            return read_fasta(_lines(self._text()))
        outline, sequences = self._outline, self._entries("sequences")
        if outline.are_named:
            return starmap(Record, sequences)
        # The ids may stand behind all sequences: two readers go through the file in step
        ids = self._entries("ids") if outline.has_ids else map(default_id, count())
        return map(Record, ids, sequences)

    @cached_property
    def _outline(self) -> _Outline:
        """All of a JSON body is read and checked for it."""
        options: dict[str, Any] = {}
        openings: dict[str, str] = {}
        sizes: dict[str, int] = {}
        reader = self._json()
        for name, token in reader.members():
            if name in options or name in openings:
                raise InvalidRequest(f"{name[:40]!r} is there twice")
            if token in _LISTS.get(name, ()):
                openings[name], sizes[name] = token, sum(map(len, reader.batches(name, token)))
            elif name not in _LISTS or (name, token) == ("ids", "null"):
                options[name] = reader.option(name, token)
            else:
                raise InvalidRequest(f"{name}: not an array of strings")
            if len(options) > MAX_OPTIONS:
                raise InvalidRequest(f"the body has more than {MAX_OPTIONS} options")
        if "sequences" not in openings:
            raise InvalidRequest("sequences: missing")
        are_named, has_ids = openings["sequences"] == "{", "ids" in openings
        if are_named and has_ids:
            raise InvalidRequest("ids: the sequences are an object, which names them already")
        if has_ids and sizes["ids"] != sizes["sequences"]:
            raise InvalidRequest(f"{sizes['ids']} ids for {sizes['sequences']} sequences")
        options.pop("ids", None)
        return _Outline(options, are_named, has_ids)

    def _entries(self, wanted: str) -> Iterator[Any]:
        """The strings of an array, the (name, string) of an object; the body has been checked."""
        reader = self._json()
        for name, token in reader.members():
            if token in _LISTS.get(name, ()):
                batches = reader.batches(name, token)
                if name == wanted:
                    yield from chain.from_iterable(batches)
                    return
                deque(batches, maxlen=0)

    def _json(self) -> JsonReader:
        return JsonReader(self._text(), MAX_CHARACTERS)

    def _text(self) -> Iterator[str]:
        """The text from its start, in blocks, none of them empty."""
        self._file.seek(0)
        is_gzip = self._file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        source: Any = _Cursor(self._file)
        if is_gzip:
            source = igzip.IGzipFile(fileobj=source, mode="rb")  # type: ignore[no-untyped-call]
        decode = codecs.getincrementaldecoder("utf-8")().decode
        size, is_over = 0, False
        while not is_over:
            try:
                block = source.read(_BLOCK_BYTES)
            except _GZIP_ERRORS as error:
                raise MalformedBody(f"broken gzip, after {size} bytes of text: {error}") from None
            size += len(block)
            is_over = not block
            if size > self._max_bytes:
                raise BodyTooLarge(f"the text is longer than {self._max_bytes} bytes")
            if b"\0" in block:
                raise MalformedBody(f"the body is no text: byte {size - len(block) + block.index(0)} is 0")
            try:
                text = decode(block, is_over)
            except UnicodeDecodeError as error:
                start = size - len(error.object) + error.start
                raise MalformedBody(f"the text is not UTF-8: byte {start}") from None
            if text:
                yield text


class _Cursor(RawIOBase):
    """A place of its own in a file where others read too."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._at)
        block = self._file.read(len(buffer))
        buffer[: len(block)] = block
        self._at += len(block)
        return len(block)


def _lines(blocks: Iterator[str]) -> Iterator[str]:
    """The lines of a FASTA text, as str.splitlines cuts them."""
    rest, number, size = "", 0, 0
    for block in chain(blocks, [""]):
        lines = (rest + block).splitlines(keepends=True)
        # The last is held back: it may go on in the next block, or only the \n of its \r\n
        rest = lines.pop() if block else ""
        for line in lines:
            number += 1
            size = len(line) if line.lstrip().startswith(">") else size + len(line)
            if size > MAX_CHARACTERS:
                raise _too_long(number)
            yield line
        if len(rest) > MAX_CHARACTERS:
            raise _too_long(number + 1)


def _too_long(number: int) -> MalformedBody:
    return MalformedBody(f"FASTA line {number}: the entry is longer than {MAX_CHARACTERS} characters")
