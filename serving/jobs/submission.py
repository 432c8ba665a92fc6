"""From an upload to the input of a job: every sequence is read, cleaned and written, and none is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from models.catalogue import Model
from serving.errors import InvalidRequest, InvalidSequences, Problem, TooManySequences
from serving.jobs.store import Entry, JobStore
from serving.results import Format, check_id
from serving.sequences import MAX_ID_LENGTH, Limits, Protein, clean
from serving.uploads import Upload

MAX_LISTED_PROBLEMS = 100


@dataclass
class Contents:
    """What an upload holds.

    num_residues: of what can be embedded. num_invalid: sequences that cannot; problems: the first of them.
    """

    num_sequences: int = 0
    num_residues: int = 0
    num_invalid: int = 0
    num_truncated: int = 0
    problems: list[Problem] = field(default_factory=list)


def write_input(
    upload: Upload, store: JobStore, job_id: str, model: Model, limits: Limits, output: Format
) -> Contents:
    """Writes the input of a job. A sequence that cannot be embedded is noted; it does not stop the others.

    Raises:
        MalformedBody, BodyTooLarge: as the upload's readers.
        TooManySequences: more than `limits.max_sequences`.
        InvalidRequest: an id is there twice, or cannot be kept as it is; or there is no sequence.
        InvalidSequences: none of the sequences can be embedded.
    """
    contents = Contents()
    claim = _unique_ids(output)
    with store.writing_input(job_id) as file:
        for index, record in enumerate(upload.records()):
            if index >= limits.max_sequences:
                raise TooManySequences(limits.max_sequences + 1, limits.max_sequences)
            claim(index, record.id)
            entry = _check(clean(index, record, model, limits), len(record.sequence), contents)
            file.write(entry.to_line())
    if not contents.num_sequences:
        raise InvalidRequest("there is no sequence")
    if contents.num_invalid == contents.num_sequences:
        raise InvalidSequences(contents.problems)
    return contents


def _check(found: Protein | Problem, length: int, contents: Contents) -> Entry:
    contents.num_sequences += 1
    if isinstance(found, Protein):
        contents.num_residues += len(found.sequence)
        contents.num_truncated += found.truncated_from is not None
        return Entry(found.id, len(found.sequence), found.sequence, truncated_from=found.truncated_from)
    contents.num_invalid += 1
    if len(contents.problems) < MAX_LISTED_PROBLEMS:
        contents.problems.append(found)
    return Entry(found.id or "", length, None, found.reason)


def _unique_ids(output: Format) -> Callable[[int, str], None]:
    """A check of each id in turn; what is kept of those before is a digest."""
    seen: dict[bytes, int] = {}

    def claim(index: int, id: str) -> None:
        shown = id if len(id) <= 40 else f"{id[:40]}..."
        if not id or len(id) > MAX_ID_LENGTH or not id.isprintable():
            raise InvalidRequest(
                f"sequence {index}: the id {shown!r} is not 1 to {MAX_ID_LENGTH} printable characters"
            )
        if reason := check_id(id, output):
            raise InvalidRequest(f"sequence {index}: {reason}")
        digest = hashlib.blake2b(id.encode(), digest_size=12).digest()
        if (first := seen.setdefault(digest, index)) != index:
            raise InvalidRequest(f"sequences {first} and {index} have the same id, {shown!r}")

    return claim
