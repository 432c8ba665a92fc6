"""Numpy files: written as embeddings arrive, kept for a while, handed out by an id that nobody can guess."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import time
import zipfile
from collections.abc import AsyncIterator, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib

from serving.errors import ExpiredOutput, StoreUnavailable, UnknownOutput
from serving.keys import ANONYMOUS
from serving.parts import Options
from serving.pipeline import Report
from serving.runners import ServedModel
from serving.sequences import Protein
from serving.threads import THREAD_BYTES, run_to_its_end

NPZ_MEDIA_TYPE = "application/x-npz"
DEFLATE_LEVEL = 1  # of ISA-L's 0 to 3: embeddings hardly deflate, higher levels take longer and gain nothing
DEFLATE_FROM_BYTES = 2_048  # a smaller member gains less than 1%, and takes twice as long
MEMORY_BYTES = 8_000_000  # up to which a npz is made in memory
RAW_DEFLATE = -15  # window bits without zlib's header, as a zip member has it
REMEMBERED_S = 86_400  # how long an expired id is told from one that never was
SENT_WITHIN_S = 60.0  # of being found, a file is opened
QUICK_S = 1e-3  # for which the event loop may wait for a file; a thread takes as long, a network's volume longer
_REQUEST_ID = re.compile(r"(\d{10})_[0-9a-f]{32}")


class NpzWriter:
    """A .npz written array after array, in any order; one at a path is never held as a whole.

    Members: `embedding_i` for each sequence, then `ids`, `sequence_count`, `storage_type`, `manifest`; all are
    read with `np.load(path, allow_pickle=False)`. Not to be used from two threads at once.
    """

    def __init__(self, target: Path | BytesIO) -> None:
        self._target = target
        self._zip = zipfile.ZipFile(target, "w")

    def add(self, index: int, embedding: np.ndarray) -> None:
        """The embedding of the index-th sequence: (D,) or (L, D)."""
        self._write(f"embedding_{index}", embedding)

    def finish(self, ids: Sequence[str], manifest: dict[str, Any]) -> None:
        """Writes what describes the embeddings and closes the file."""
        self._write("ids", np.array(ids, dtype=np.str_))
        self._write("sequence_count", np.array(len(ids)))
        self._write("storage_type", np.array("list_of_arrays"))
        self._write("manifest", np.array(json.dumps(manifest)))
        self._zip.close()

    def abandon(self) -> None:
        """Closes and deletes an unfinished file."""
        try:
            self._zip.close()
        except (OSError, ValueError):  # a full disk takes no directory either
            pass
        finally:
            if isinstance(self._target, Path):
                self._target.unlink(missing_ok=True)

    def _write(self, name: str, array: np.ndarray) -> None:
        info = zipfile.ZipInfo(f"{name}.npy")
        is_deflated = array.nbytes >= DEFLATE_FROM_BYTES
        info.compress_type = zipfile.ZIP_DEFLATED if is_deflated else zipfile.ZIP_STORED
        with self._zip.open(info, "w", force_zip64=is_deflated) as member:
            if is_deflated:
                # zipfile knows zlib alone; ISA-L deflates ten times faster to the same size
                member._compressor = isal_zlib.compressobj(  # type: ignore[attr-defined]
                    DEFLATE_LEVEL, wbits=RAW_DEFLATE
                )
            member.write(_npy_header(array.dtype.str, array.shape))
            member.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


@lru_cache(maxsize=4096)
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What a .npy begins with, for an array in row-major order."""
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@contextlib.asynccontextmanager
async def writing(target: Path | BytesIO) -> AsyncIterator[NpzWriter]:
    """A writer, to be finished inside; where that does not come about, a file at a path is deleted.

    Raises:
        StoreUnavailable: the file cannot be written (the disk is full, say).
    """
    try:
        writer = NpzWriter(target)
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise
    except OSError as error:
        raise StoreUnavailable(f"the outputs cannot be written ({error.strerror})") from error


def describe(served: ServedModel, proteins: Sequence[Protein], options: Options, report: Report) -> dict[str, Any]:
    """The manifest: what a file says of itself, so that it can be understood without the request."""
    return {
        "model": served.model.name,
        "tag": served.tag,
        "trained": served.is_trained,
        "precision": report.precision,
        "dtype": options.dtype,
        "layer": "last",
        "pooling": "mean over residues" if options.pooled else "none: one row a residue",
        "lengths": [len(protein.sequence) for protein in proteins],
        "replaced_residues": {
            str(index): protein.replaced for index, protein in enumerate(proteins) if protein.replaced
        },
        "truncated_from": {
            str(index): protein.truncated_from
            for index, protein in enumerate(proteins)
            if protein.truncated_from is not None
        },
        "window": options.window,
        "errors": {str(index): reason for index, reason in report.errors.items()},
    }


def _place(npz: Path | BytesIO, path: Path) -> None:
    """Puts a npz where downloads are found; where that fails, nothing is left of it."""
    try:
        if isinstance(npz, Path):
            npz.rename(path)
        else:
            path.write_bytes(npz.getbuffer())
    except OSError:
        path.unlink(missing_ok=True)
        if isinstance(npz, Path):
            npz.unlink(missing_ok=True)
        raise


class OutputStore:
    """Files in a folder that all gateway workers see. A file's name says whose it is, its time when it ends.

    Args:
        folder: of the files; made if missing.
        ttl_s: seconds that a download is kept.
        writing_s: seconds after which a file that is not finished will never be.
    """

    def __init__(self, folder: Path, ttl_s: float, writing_s: float) -> None:
        self.folder = folder
        self._ttl_s = ttl_s
        self._writing_s = writing_s
        self._is_quick = False  # the folder, as far as the latest small file tells
        folder.mkdir(parents=True, exist_ok=True)

    def new(self) -> tuple[str, Path]:
        """A fresh request id, and the path to write its file to before it is published."""
        request_id = f"{int(time.time())}_{secrets.token_hex(16)}"
        return request_id, self.folder / f"{request_id}.part"

    async def publish(self, request_id: str, model: str, npz: Path | BytesIO, owner: str = ANONYMOUS) -> str:
        """Makes a npz downloadable for its owner, which was written to the path of `new` or to memory.

        Returns:
            Its link.
        Raises:
            StoreUnavailable: the file cannot be written; it is deleted.
        """
        path = self._path(request_id, model, owner)
        is_small = isinstance(npz, BytesIO) and npz.getbuffer().nbytes < THREAD_BYTES

        def place() -> None:
            started = time.perf_counter()
            try:
                _place(npz, path)
            finally:
                if is_small:
                    self._is_quick = time.perf_counter() - started < QUICK_S

        try:
            await run_to_its_end(place, 0 if is_small and self._is_quick else THREAD_BYTES)
        except OSError as error:
            raise StoreUnavailable(f"the outputs cannot be written ({error.strerror})") from error
        return f"/embeddings/download/{model}/numpy/{request_id}"

    def find(self, request_id: str, model: str, owner: str = ANONYMOUS) -> Path:
        """The file of a published download.

        Raises:
            UnknownOutput: no such id, not an id at all, of another model, or somebody else's.
            ExpiredOutput: what had this id, whosever it was, is not there any more.
            StoreUnavailable: the folder cannot be read.
        """
        form = _REQUEST_ID.fullmatch(request_id)
        if form is None:
            raise UnknownOutput("no such download")
        path, now = self._path(request_id, model, owner), time.time()
        try:
            if now - path.stat().st_mtime < self._ttl_s:
                return path
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StoreUnavailable(f"the outputs cannot be read ({error.strerror})") from error
        # Nothing is known of a file that was deleted but what its id says, to whoever comes with it
        if self._ttl_s <= now - int(form[1]) < self._ttl_s + REMEMBERED_S:
            raise ExpiredOutput(f"downloads are kept for {self._ttl_s / 60:g} minutes; ask for it again")
        raise UnknownOutput("no such download")

    def sweep(self) -> int:
        """Deletes the files whose time is over, and those that were never finished; how many.

        Raises:
            OSError: the folder, or a file, does not let it.
        """
        now, deleted = time.time(), 0
        for path in self.folder.iterdir():
            keep_s = self._writing_s if path.suffix == ".part" else self._ttl_s + SENT_WITHIN_S
            try:
                if now - path.stat().st_mtime > keep_s:
                    path.unlink()
                    deleted += 1
            except FileNotFoundError:  # another worker was faster
                continue
        return deleted

    def _path(self, request_id: str, model: str, owner: str) -> Path:
        holder = hashlib.sha256(f"{model}\0{owner}".encode()).hexdigest()[:32]
        return self.folder / f"{request_id}.{holder}.npz"
