"""Proteins from where they lie: FASTA (plain, gzip) or Parquet, one file or many, anywhere that fsspec knows."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import fsspec

from serving.errors import InvalidRequest, MalformedBody
from serving.sequences import Record
from serving.uploads import Upload

PARQUET_SUFFIXES = (".parquet", ".pq")
_ROWS = 4096  # of a Parquet file that are held at once


def expand(places: Sequence[str]) -> list[str]:
    """Every file behind paths, URLs and globs, each once: in the order of `places`, a glob's by name.

    Raises:
        InvalidRequest: a place has no file.
    """
    found: dict[str, None] = {}
    for place in places:
        fs, path = fsspec.core.url_to_fs(place)
        if not any(mark in place for mark in "*?["):
            if not fs.isfile(path):
                raise InvalidRequest(f"{place} is no file")
            found[place] = None
            continue
        names = sorted(name for name in fs.glob(path) if fs.isfile(name))
        if not names:
            raise InvalidRequest(f"{place} matches no file")
        found |= dict.fromkeys(fs.unstrip_protocol(name) for name in names)
    return list(found)


def read(places: Sequence[str]) -> Iterator[Record]:
    """The entries of all files, one after the other; a block of a file is held at a time.

    Raises:
        MalformedBody: a file is neither FASTA nor a Parquet file with columns `id` and `sequence`; it is named.
    """
    for place in places:
        with fsspec.open(place, "rb") as file:
            try:
                if place.endswith(PARQUET_SUFFIXES):
                    yield from _rows(file)
                else:
                    yield from Upload(file, "fasta", sys.maxsize).records()
            except MalformedBody as error:
                raise MalformedBody(f"{place}: {error}") from error


def _rows(file: object) -> Iterator[Record]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        for batch in table.iter_batches(_ROWS, columns=["id", "sequence"]):
            if batch.num_columns != 2:
                raise MalformedBody("no columns `id` and `sequence`")
            for id, sequence in zip(batch["id"].to_pylist(), batch["sequence"].to_pylist(), strict=True):
                yield Record(str(id), sequence or "")
    except pa.ArrowInvalid as error:
        raise MalformedBody(f"no Parquet: {error}") from error
