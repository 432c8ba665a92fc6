"""Proteins as people send them: FASTA, lower case, white space, a stop at the end; and what is no protein."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from models.catalogue import Model
from serving.errors import InvalidRequest, InvalidSequences, MalformedBody, Problem, TooManySequences

OnTooLong = Literal["error", "truncate", "window"]

MAX_WINDOWED_LENGTH = (
    100_000  # residues of a sequence that is cut into windows; titin, the longest in man, has 34,350
)
MAX_ID_LENGTH = 256  # an array of ids is as wide as its longest
# For the OpenAPI document: what `clean` takes, and FASTA of it. Every letter but J is in an alphabet
_LETTER = "A-IK-Za-ik-z"
PROTEIN_PATTERN = rf"^\s*([{_LETTER}]\s*)+(\*\s*)?$"
_ENTRY = rf">[^\r\n]*\r?\n\s*[{_LETTER}][{_LETTER}\s]*(\*[ \t]*)?"
FASTA_PATTERN = rf"^\s*{_ENTRY}(\r?\n\s*{_ENTRY})*\s*$"
_HINTS = {
    "J": "leucine or isoleucine, in no model's vocabulary; write L, I or X",
    "-": "an alignment gap; remove the gaps",
    ".": "an alignment gap; remove the gaps",
    "*": "a stop codon inside the sequence; only one at the end is accepted",
}


@dataclass(frozen=True)
class Limits:
    """Residues of a sequence, and sequences of a request.

    on_too_long: what becomes of a sequence above `max_length`: an error; cut off there; or computed in windows.
    """

    min_length: int
    max_length: int
    max_sequences: int
    on_too_long: OnTooLong = "error"


@dataclass(frozen=True)
class Protein:
    """A cleaned sequence.

    replaced: (1-based position, letter) that the model reads as another. truncated_from: residues that it had
    before it was cut off; None if it was not.
    """

    id: str
    sequence: str
    replaced: tuple[tuple[int, str], ...] = ()
    truncated_from: int | None = None


@dataclass(frozen=True)
class Record:
    """An entry of a FASTA text, as it stood there."""

    id: str
    sequence: str


def parse_fasta(text: str, limit: int | None = None) -> list[Record]:
    """Entries of a FASTA text; the first word of a header is the id.

    Raises:
        TooManySequences: more than `limit`.
        MalformedBody: text before the first header, or no header at all, with the line.
    """
    num_headers = text.count("\n>") + text.startswith(">")
    if limit is not None and num_headers > limit:
        raise TooManySequences(num_headers, limit)
    return list(read_fasta(text.splitlines()))


def read_fasta(lines: Iterable[str]) -> Iterator[Record]:
    """Entries of a FASTA text that comes line by line.

    Raises:
        MalformedBody: as `parse_fasta`.
    """
    num_records, id = 0, ""
    parts: list[str] = []
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if line.startswith(">"):
            if num_records:
                yield Record(id, "".join(parts))
            words = line[1:].split(maxsplit=1)
            id, parts = (words[0] if words else default_id(num_records)), []
            num_records += 1
        elif line and not line.startswith(";"):  # ; is a comment in the oldest FASTA
            if not num_records:
                raise MalformedBody(f"FASTA line {number} comes before the first header: {line[:40]!r}")
            parts.append(line)
    if not num_records:
        raise MalformedBody("no FASTA header (a line that starts with '>') in the text")
    yield Record(id, "".join(parts))


def default_id(index: int) -> str:
    """The id of a sequence that came without one."""
    return f"sequence_{index}"


def clean_all(records: Sequence[Record], model: Model, limits: Limits) -> list[Protein]:
    """Cleaned proteins, in order, duplicates kept.

    Raises:
        InvalidRequest: there is none.
        TooManySequences: more than a request may hold.
        InvalidSequences: naming every sequence that is wrong, not the first alone.
    """
    if not records:
        raise InvalidRequest("the request holds no sequence")
    if len(records) > limits.max_sequences:
        raise TooManySequences(len(records), limits.max_sequences)
    results = [clean(index, record, model, limits) for index, record in enumerate(records)]
    problems = [result for result in results if isinstance(result, Problem)]
    if problems:
        raise InvalidSequences(problems)
    return [result for result in results if isinstance(result, Protein)]


def clean(index: int, record: Record, model: Model, limits: Limits) -> Protein | Problem:
    """White space out, upper case, one `*` at the end off; then the checks.

    Positions are those of the letters as they came, white space not counted.
    """
    if len(record.id) > MAX_ID_LENGTH or not (record.id + "x").isprintable():
        return Problem(index, f"the id is not {MAX_ID_LENGTH} printable characters at most", record.id[:40])
    raw = "".join(record.sequence.split()).removesuffix("*")
    if not raw:
        return Problem(index, "the sequence is empty", record.id)
    if len(raw) < limits.min_length:
        return Problem(index, f"{len(raw)} residues; the least is {limits.min_length}", record.id)
    most = {"error": limits.max_length, "truncate": len(raw), "window": MAX_WINDOWED_LENGTH}[limits.on_too_long]
    if len(raw) > most:
        return Problem(index, f"{len(raw)} residues; the most is {most}", record.id)
    if foreign := _foreign_letters(model).search(raw):
        letter, position = foreign.group(), foreign.start() + 1
        reason = f"{letter!r} at position {position} is {_HINTS.get(letter.upper(), 'not a residue')}"
        return Problem(index, reason, record.id, position, letter)
    truncated_from = None
    if limits.on_too_long == "truncate" and len(raw) > limits.max_length:
        truncated_from, raw = len(raw), raw[: limits.max_length]
    sequence = raw.upper()
    found = _replaced_letters(model).finditer(sequence) if model.replaced_residues else ()
    replaced = tuple((match.start() + 1, match.group()) for match in found)
    return Protein(record.id, sequence, replaced, truncated_from)


@cache
def _foreign_letters(model: Model) -> re.Pattern[str]:
    """Of raw text, both cases spelled out: str.upper would turn some other alphabets' letters into residues."""
    letters = "".join(sorted(model.alphabet))
    return re.compile(f"[^{letters}{letters.lower()}]")


@cache
def _replaced_letters(model: Model) -> re.Pattern[str]:
    return re.compile(f"[{''.join(model.replaced_residues)}]")
