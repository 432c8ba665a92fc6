"""Equal sequences that lie far apart: each is computed once, where the first of them is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from bulk.repeats import SIZE
from bulk.survey import Survey, digest_of, digest_of_id
from serving.sequences import Record

MAX_TWINS = 1_000_000  # ids that are held; of more, those that come later are computed again


@dataclass(frozen=True)
class Twins:
    """others: ids that come later with the sequence of this digest, in order. moved: all of those ids."""

    others: Mapping[bytes, list[str]] = field(default_factory=dict)
    moved: frozenset[str] = frozenset()

    def gathered(self, records: Iterable[Record]) -> Iterator[Record]:
        """The records, each behind the first that has its sequence."""
        if not self.others:
            yield from records
            return
        given: set[bytes] = set()
        for record in records:
            if record.id in self.moved:
                continue
            yield record
            digest = digest_of(record.sequence)
            if digest in self.others and digest not in given:
                given.add(digest)
                for id in self.others[digest]:
                    yield Record(id, record.sequence)


def find_twins(records: Iterable[Record], found: Survey, most: int = MAX_TWINS) -> Twins:
    """Reads the input once more, unless no sequence comes twice. Ids that come twice stay where they are: which of
    them is the first decides what counts."""
    if not found.repeated_sequences:
        return Twins()
    others: dict[bytes, list[str]] = {}
    num = 0
    for record in records:
        digest = digest_of(record.sequence)
        if digest[:SIZE] not in found.repeated_sequences:
            continue
        if digest not in others:
            others[digest] = []
        elif num < most and digest_of_id(record.id) not in found.repeated:
            others[digest].append(record.id)
            num += 1
    others = {digest: ids for digest, ids in others.items() if ids}
    return Twins(others, frozenset(id for ids in others.values() for id in ids))
