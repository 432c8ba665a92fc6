"""Which of many digests come more than once. They are kept in files, so that memory does not grow with them."""

from __future__ import annotations

import tempfile
from types import TracebackType

import numpy as np

SIZE = 8  # bytes of a digest
_FLUSH_BYTES = 1 << 16
_PARTITIONS = 64  # files: of 60 million digests each has 8 MB, which is what is sorted at a time


class Repeats:
    """Inside its `with`, takes digests of SIZE bytes one by one."""

    def __init__(self) -> None:
        self._buffers = [bytearray() for _ in range(_PARTITIONS)]
        self._files = [tempfile.TemporaryFile(prefix="pes-bulk-") for _ in range(_PARTITIONS)]  # noqa: SIM115

    def __enter__(self) -> Repeats:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()

    def add(self, digest: bytes) -> None:
        part = digest[0] % _PARTITIONS
        buffer = self._buffers[part]
        buffer += digest
        if len(buffer) >= _FLUSH_BYTES:
            self._files[part].write(buffer)
            buffer.clear()

    def found(self, most: int) -> frozenset[bytes]:
        """Digests that were added more than once; of more than `most`, some that are no fewer."""
        repeated: set[bytes] = set()
        for file, buffer in zip(self._files, self._buffers, strict=True):
            file.write(buffer)
            buffer.clear()
            file.seek(0)
            values = np.sort(np.frombuffer(file.read(), ">u8"))
            repeated |= {int(value).to_bytes(SIZE, "big") for value in values[1:][values[1:] == values[:-1]]}
            if len(repeated) > most:
                break
        return frozenset(repeated)
