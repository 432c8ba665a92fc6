"""What the service says of itself while it runs."""

from __future__ import annotations

import logging

FORMAT = "%(asctime)s [%(levelname)s] [%(name)s] %(message)s"


def configure_logging(level: str) -> None:
    """Our own loggers to standard error, at `level` and above; BentoML sets up its own."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(FORMAT))
    for name in ("models", "serving"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level)
