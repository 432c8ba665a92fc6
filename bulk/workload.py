"""What a bulk run is asked for: all that decides what is in its output, and nothing that does not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from models.catalogue import Model, find
from serving.sequences import Limits

if TYPE_CHECKING:
    from models.backends.choice import Precision

Form = Literal["parquet", "h5", "zarr"]
Dtype = Literal["float16", "float32"]

CODE_VERSION = 2  # of plans and shards: one more wherever equal input and settings make other files


@dataclass(frozen=True)
class Workload:
    """Settings of a run.

    tag: of the model store, `name:version`; its version is a digest of the weights. precision: of the products,
    "auto" asks each actor's hardware. shard_tokens: cost of a shard at most, in tokens' worth of arithmetic.
    window_residues, window_sequences: within which the longest come first.
    """

    model: str
    tag: str
    is_trained: bool
    pooled: bool
    dtype: Dtype
    form: Form
    precision: Precision
    min_length: int
    max_length: int
    truncate: bool
    shard_tokens: int
    window_residues: int
    window_sequences: int

    @cached_property
    def row(self) -> Model:
        """Of the catalogue."""
        return find(self.model)

    @cached_property
    def limits(self) -> Limits:
        return Limits(self.min_length, self.max_length, 1, "truncate" if self.truncate else "error")

    def describe(self) -> dict[str, Any]:
        """For the manifest, fit for JSON; of equal input, equal descriptions make equal shards."""
        return {**asdict(self), "code_version": CODE_VERSION}

    def about(self) -> dict[str, Any]:
        """What a shard says of itself."""
        return {
            "model": self.model,
            "tag": self.tag,
            "trained": self.is_trained,
            "dtype": self.dtype,
            "dim": self.row.dim,
            "layer": "last",
            "pooled": self.pooled,
            "pooling": "mean over residues" if self.pooled else "none: one row a residue",
        }


@dataclass(frozen=True)
class Worker:
    """What an actor is told beside the workload.

    folder: of the weights; an actor on a machine without it asks its own model store for the tag.
    device: "cpu" or "cuda"; num_threads: of an actor on the CPU. cache_url: of the service's Redis, if it is
    asked.
    engine: "packed", or "null" for measurements of everything else.
    """

    folder: Path
    device: str = "cpu"
    num_threads: int = 1
    cache_url: str | None = None
    engine: Literal["packed", "null"] = "packed"
