"""A unix socket that is reached even when its name is gone."""

from __future__ import annotations

import logging
import os
import sys

logger = logging.getLogger(__name__)


class HeldSocket:
    """The socket that a path names now.

    BentoML deletes the folder of its runners' sockets as soon as it is told to end, while they still listen, and
    what was let in may need one connection more (docs/decisions/0023-alive-ready-and-the-end.md).

    Args:
        path: of the socket, by which it is reached where it cannot be held: only Linux has a way.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor: int | None = None
        if sys.platform == "linux":
            try:
                self._descriptor = os.open(path, os.O_PATH)
                held = f"/proc/self/fd/{self._descriptor}"
                os.stat(held)
                self.path = held
            except OSError as error:
                logger.warning(
                    "%s is not held, so that requests may be lost when the service ends: %s", path, error
                )
                self.close()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
