"""The first reading of the input: how much it is, its fingerprint, and which ids come twice."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from models.planning import cost
from serving.errors import InvalidRequest
from serving.sequences import Record

_FLUSH_BYTES = 1 << 16
_PARTITIONS = 64  # files of digests: of 60 million ids each has 8 MB, which is what is sorted at a time
LENGTH_BIN, NUM_BINS = 50, 201
MAX_REPEATED = 1_000_000  # ids; more than that is a file that was given twice


@dataclass(frozen=True)
class Survey:
    """num_residues: letters as they stand there. total_cost: in tokens' worth of arithmetic of the model.

    repeated: digests (`digest_of_id`) of ids that come more than once.
    """

    num_sequences: int
    num_residues: int
    longest: int
    total_cost: int
    fingerprint: str
    repeated: frozenset[bytes]
    lengths: tuple[int, ...]  # how many of 0 to 49 residues, of 50 to 99, ...; the last has all longer ones


def digest_of_id(id: str) -> bytes:
    """8 bytes."""
    return blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def survey(records: Iterable[Record], dim: int) -> Survey:
    """Reads everything once; what is held does not grow with it, but for ids that come twice.

    Raises:
        InvalidRequest: there is no sequence, or more than MAX_REPEATED ids come twice.
    """
    whole = blake2b(digest_size=16)
    num_sequences = num_residues = longest = total_cost = 0
    lengths = [0] * NUM_BINS
    buffers = [bytearray() for _ in range(_PARTITIONS)]
    with tempfile.TemporaryDirectory(prefix="pes-bulk-") as folder:
        files = [open(f"{folder}/{part}", "w+b") for part in range(_PARTITIONS)]  # noqa: SIM115
        try:
            for record in records:
                length = len(record.sequence)
                whole.update(f"{record.id}\0{record.sequence}\n".encode("utf-8", "surrogatepass"))
                digest = digest_of_id(record.id)
                part = digest[0] % _PARTITIONS
                buffers[part] += digest
                if len(buffers[part]) >= _FLUSH_BYTES:
                    files[part].write(buffers[part])
                    buffers[part].clear()
                num_sequences += 1
                lengths[min(length // LENGTH_BIN, NUM_BINS - 1)] += 1
                num_residues += length
                total_cost += cost(length, dim)
                longest = max(longest, length)
            repeated: set[bytes] = set()
            for file, buffer in zip(files, buffers, strict=True):
                file.write(buffer)
                file.seek(0)
                repeated |= _twice(file.read())
                if len(repeated) > MAX_REPEATED:
                    raise InvalidRequest(f"more than {MAX_REPEATED} ids come twice; was a file given twice?")
        finally:
            for file in files:
                file.close()
    if not num_sequences:
        raise InvalidRequest("the input holds no sequence")
    return Survey(
        num_sequences,
        num_residues,
        longest,
        total_cost,
        whole.hexdigest(),
        frozenset(repeated),
        tuple(lengths),
    )


def _twice(digests: bytes) -> set[bytes]:
    values = np.sort(np.frombuffer(digests, ">u8"))
    return {int(value).to_bytes(8, "big") for value in values[1:][values[1:] == values[:-1]]}
