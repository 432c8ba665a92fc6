"""The first reading of the input: how much it is, its fingerprint, and which ids and sequences come twice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from bulk.repeats import SIZE, Repeats
from models.planning import cost
from serving.errors import InvalidRequest
from serving.sequences import Record

LENGTH_BIN, NUM_BINS = 50, 201
MAX_REPEATED = 1_000_000  # ids (more than that is a file that was given twice), and sequences that are noted


@dataclass(frozen=True)
class Survey:
    """num_residues: letters as they stand there. total_cost: in tokens' worth of arithmetic of the model.

    repeated: digests (`digest_of_id`) of ids that come more than once. repeated_sequences: of sequences, the first
    SIZE bytes of `digest_of`.
    """

    num_sequences: int
    num_residues: int
    longest: int
    total_cost: int
    fingerprint: str
    repeated: frozenset[bytes]
    repeated_sequences: frozenset[bytes]
    lengths: tuple[int, ...]  # how many of 0 to 49 residues, of 50 to 99, ...; the last has all longer ones


def digest_of_id(id: str) -> bytes:
    """SIZE bytes."""
    return blake2b(id.encode("utf-8", "surrogatepass"), digest_size=SIZE).digest()


def digest_of(sequence: str) -> bytes:
    """16 bytes, of the letters as they stand there."""
    return blake2b(sequence.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def survey(records: Iterable[Record], dim: int) -> Survey:
    """Reads everything once; what is held does not grow with it, but for what comes twice.

    Raises:
        InvalidRequest: there is no sequence, or more than MAX_REPEATED ids come twice.
    """
    whole = blake2b(digest_size=16)
    num_sequences = num_residues = longest = total_cost = 0
    lengths = [0] * NUM_BINS
    with Repeats() as ids, Repeats() as sequences:
        for record in records:
            length, digest = len(record.sequence), digest_of(record.sequence)
            whole.update(record.id.encode("utf-8", "surrogatepass") + b"\0" + digest)
            ids.add(digest_of_id(record.id))
            sequences.add(digest[:SIZE])
            num_sequences += 1
            lengths[min(length // LENGTH_BIN, NUM_BINS - 1)] += 1
            num_residues += length
            total_cost += cost(length, dim)
            longest = max(longest, length)
        repeated = ids.found(MAX_REPEATED)
        if len(repeated) > MAX_REPEATED:
            raise InvalidRequest(f"more than {MAX_REPEATED} ids come twice; was a file given twice?")
        repeated_sequences = sequences.found(MAX_REPEATED)
    if not num_sequences:
        raise InvalidRequest("the input holds no sequence")
    return Survey(
        num_sequences,
        num_residues,
        longest,
        total_cost,
        whole.hexdigest(),
        repeated,
        repeated_sequences,
        tuple(lengths),
    )
