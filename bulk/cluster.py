"""Ray itself: one of this process's own, or a cluster, which is sent the code that the actors run."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import ray

OBJECT_STORE_BYTES = 200_000_000  # of an embedded Ray: blocks of letters go through it, no embeddings
PACKAGES = ("bulk", "models", "serving")  # what an actor imports of this repository
_ROOT = Path(__file__).parents[1]


def connect(address: str | None, num_cpus: int) -> None:
    """Ray: a cluster's by its address, else one of this process's own that ends with it, at 127.0.0.1 alone.

    A cluster's machines need the packages of requirements-bulk.txt and the weights, and no copy of this code.

    Raises:
        ConnectionError: no cluster answers there, or it wants a token.
    """
    logging.getLogger("ray").setLevel(logging.WARNING)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address is not None:
        _join(address)
        return
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )


def disconnect() -> None:
    """Ends an embedded Ray; a cluster goes on, without this run's actors."""
    ray.shutdown()


def _join(address: str) -> None:
    code = {"py_modules": [str(_ROOT / name) for name in PACKAGES], "excludes": ["**/__pycache__"]}
    try:
        ray.init(address=address, runtime_env=code, log_to_driver=False)
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        reason = str(error).rstrip(". \n")
        raise ConnectionError(
            f"{address}: {reason}. Where the cluster wants a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from error
