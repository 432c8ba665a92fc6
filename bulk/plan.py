"""Input to blocks: what one actor computes at a time, and one shard holds. Input and settings alone decide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

from bulk.survey import Survey, digest_of_id
from bulk.twins import Twins
from bulk.workload import Workload
from models.planning import cost, plan
from serving.errors import Problem
from serving.results import check_id
from serving.sequences import Protein, Record, clean

# A shard is long enough for an actor to be busy for a while, and short enough to be lost with it
SHARD_TOKENS = (1 << 16, 1 << 23)
NUM_SHARDS = 64  # at least, of an input that is large enough
SHARD_BYTES = 256_000_000  # of embeddings, which an actor holds until the shard is written
WINDOW_SHARDS = 8  # of which a window has as much as this


@dataclass(frozen=True)
class Failure:
    """A sequence without an embedding, and why."""

    id: str
    length: int
    reason: str


@dataclass(frozen=True)
class Block:
    """ids[i] has the sequence sequences[places[i]]; equal sequences are there once. The longest come first.

    rejected: of the window that begins with this block, what cannot be computed at all.
    """

    index: int
    sequences: list[str]
    ids: list[str]
    places: list[int]
    rejected: list[Failure] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Of all that decides what is in the shard, settings aside."""
        found = blake2b(digest_size=16)
        for id, place in zip(self.ids, self.places, strict=True):
            found.update(f"{id}\0{self.sequences[place]}\n".encode())
        for failure in self.rejected:
            found.update(f"{failure}\n".encode("utf-8", "surrogatepass"))
        return found.hexdigest()

    @property
    def num_residues(self) -> int:
        """Of sequences that are computed."""
        return sum(map(len, self.sequences))


def shard_tokens(survey: Survey, pooled: bool, row_bytes: int) -> int:
    """What a shard may cost, unless somebody says otherwise. row_bytes: of one vector."""
    least, most = SHARD_TOKENS
    tokens = min(most, max(least, survey.total_cost // NUM_SHARDS))
    return tokens if pooled else min(tokens, SHARD_BYTES // row_bytes)


def blocks(
    records: Iterable[Record], workload: Workload, repeated: frozenset[bytes], twins: Twins
) -> Iterator[Block]:
    """The blocks of an input, in order; a window of it is held at a time.

    Args:
        repeated: digests of ids that come twice: the first of them counts.
    """
    index = 0
    for proteins, rejected in _windows(twins.gathered(records), workload, repeated):
        for block in _of_window(proteins, rejected, workload, index):
            yield block
            index += 1


def _windows(
    records: Iterable[Record], workload: Workload, repeated: frozenset[bytes]
) -> Iterator[tuple[list[tuple[str, str]], list[Failure]]]:
    """(id, sequence as the model reads it) of each window, and what it has beside them."""
    model = workload.row
    proteins: list[tuple[str, str]] = []
    rejected: list[Failure] = []
    num_residues = 0
    seen: set[str] = set()  # of the ids that come twice, those that have come
    for number, record in enumerate(records):
        found = _check(number, record, workload, repeated, seen)
        if isinstance(found, Protein):
            proteins.append((found.id, model.read_as(found.sequence)))
            num_residues += len(found.sequence)
        else:
            rejected.append(found)
        is_full = num_residues >= workload.window_residues
        if is_full or len(proteins) + len(rejected) >= workload.window_sequences:
            yield proteins, rejected
            proteins, rejected, num_residues = [], [], 0
    if proteins or rejected:
        yield proteins, rejected


def _check(
    number: int, record: Record, workload: Workload, repeated: frozenset[bytes], seen: set[str]
) -> Protein | Failure:
    if repeated and digest_of_id(record.id) in repeated:
        if record.id in seen:
            return Failure(record.id, len(record.sequence), "the id was there before")
        seen.add(record.id)
    if (reason := check_id(record.id, "h5" if workload.form == "h5" else "parquet")) is not None:
        return Failure(record.id, len(record.sequence), reason)
    found = clean(number, record, workload.row, workload.limits)
    if isinstance(found, Problem):
        return Failure(record.id, len(record.sequence), found.reason)
    return found


def _of_window(
    proteins: list[tuple[str, str]], rejected: list[Failure], workload: Workload, index: int
) -> Iterator[Block]:
    owners: dict[str, list[str]] = {}
    for id, sequence in proteins:
        owners.setdefault(sequence, []).append(id)
    ordered = sorted(owners, key=lambda sequence: -len(sequence))
    num_specials, dim = sum(workload.row.num_specials), workload.row.dim
    costs = [cost(len(sequence) + num_specials, dim) for sequence in ordered]
    for places in plan(costs, workload.shard_tokens):
        sequences = ordered[places.start : places.stop]
        ids = [(id, place) for place, sequence in enumerate(sequences) for id in owners[sequence]]
        yield Block(index, sequences, [id for id, _ in ids], [place for _, place in ids], rejected)
        index, rejected = index + 1, []
    if rejected:
        yield Block(index, [], [], [], rejected)
