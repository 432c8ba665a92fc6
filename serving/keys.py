"""API keys: who holds which, read from a setting and from a file that may change while the service runs."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

MIN_LENGTH = 16  # of a key: what is shorter can be tried out
LOOK_EVERY_S = 1.0  # whether the file has changed
ANONYMOUS = "anonymous"  # whoever asks where no key is needed
_NAME = re.compile(r"[A-Za-z0-9][\w.@-]{0,63}", re.ASCII)
_State = tuple[int, ...]


@dataclass(frozen=True)
class Caller:
    """Whose a request is: jobs, downloads and limits go by the name. is_admin: an operator's key came with it."""

    name: str = ANONYMOUS
    is_admin: bool = False


class Keys:
    """Names by key; of the keys only digests are held.

    A name may have several keys, so that one can be replaced while the other is in use.

    Args:
        variable: the setting's name, for messages.
        listed: `name:key,name:key`.
        path: of a file with a `name:key` in each line; empty lines and those that begin with # do not count.
    Raises:
        ValueError: an entry is not of that form, the variable holds none, or the file cannot be read. Neither keys
            nor names are shown: somebody may have written them the wrong way round.
    """

    def __init__(self, variable: str, listed: str = "", path: Path | None = None) -> None:
        self._variable, self._path = variable, path
        self._fixed = _parse([part for part in listed.split(",") if part.strip()], variable)
        if listed and not self._fixed:
            raise ValueError(f"{variable}: it is set, and holds no name:key")
        self._in_file: dict[bytes, str] = {}
        self._state: _State | None = None
        self._complaint = ""
        self._look_at = 0.0
        if path is not None:
            self._read(path)

    @property
    def is_set(self) -> bool:
        """Whether keys are asked for; an empty file lets nobody in."""
        return bool(self._fixed) or self._path is not None

    @property
    def count(self) -> int:
        return len(self._fixed | self._in_file)

    def name_of(self, key: str) -> str | None:
        """Whose key this is; None for nobody's. How long it takes does not depend on how much of it is right."""
        self._look()
        digest, found = _digest(key), None
        for known, name in (self._fixed | self._in_file).items():
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def _look(self) -> None:
        """Reads the file again if it has changed; what cannot be understood leaves things as they are."""
        if self._path is None or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_EVERY_S
        try:
            self._read(self._path)
        except ValueError as error:
            if str(error) != self._complaint:  # which is made once
                logger.error("%s; the keys stay as they were", error)
            self._complaint = str(error)
        else:
            self._complaint = ""

    def _read(self, path: Path) -> None:
        """Takes the keys of the file, if it is not the one that was read last."""
        where = f"{self._variable}_FILE"
        try:
            # Looked at before it is read: what is written meanwhile is seen the next time
            state = _state_of(path)
            if state == self._state:
                return
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{where}: {path} cannot be read ({type(error).__name__})") from None
        lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
        self._in_file = _parse(lines, where)
        if self._state is not None:
            logger.info("%s: read again, %d keys", where, len(self._in_file))
        self._state = state


def _state_of(path: Path) -> _State:
    """What changes with a file: a copy may keep size and time of writing, but not when that was done."""
    found = path.stat()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _parse(entries: list[str], where: str) -> dict[bytes, str]:
    names: dict[bytes, str] = {}
    for number, entry in enumerate(entries, start=1):
        name, colon, key = entry.strip().partition(":")
        key = key.strip()
        if not colon or not _NAME.fullmatch(name) or name == ANONYMOUS:
            raise ValueError(f"{where}: entry {number} is not of the form name:key")
        if len(key) < MIN_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(
                f"{where}: entry {number} has a key that is not {MIN_LENGTH} printable characters or more"
            )
        if names.setdefault(_digest(key), name) != name:
            raise ValueError(f"{where}: entry {number} has the key of another name")
    return names
