"""What an actor does: a model that stays loaded, a block in, a shard written. Nothing here knows of Ray."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bulk.folder import Folder
from bulk.lookup import Lookup
from bulk.manifest import Shard
from bulk.plan import Block, Failure
from bulk.shards import shard_name, write_shard
from bulk.workload import Worker, Workload
from models.failures import OutOfMemory
from models.planning import plan

if TYPE_CHECKING:
    from models.engine import Engine

Outcome = np.ndarray | Exception


class ShardWriter:
    """A model on one device, or on some cores.

    Raises:
        CheckpointError: the stored files do not hold the model.
    """

    def __init__(self, workload: Workload, worker: Worker, output: str) -> None:
        self.workload = workload
        self._folder = Folder(output)
        self._engine: Any = _ENGINES[worker.engine](workload, worker)
        self.precision: str = self._engine.choice.precision
        self._lookup = Lookup(workload, self.precision, worker.cache_url) if worker.cache_url else None

    def told_precision(self) -> str:
        """ "fp32", "bf16" or "fp16"; an answer says that the model is loaded."""
        return self.precision

    def write(
        self,
        block: Block,
        poisoned: frozenset[int] = frozenset(),
        begin: Callable[[int], None] | None = None,
    ) -> Shard:
        """Computes a block and writes its shard.

        Args:
            poisoned: places of sequences that ended a process before: they fail without being computed.
            begin: is told the place of each sequence before it is computed, alone, to find the poisoned one.
        Raises:
            OSError: the shard cannot be written.
            DeviceLost: only a new process has a chance.
        """
        started = time.perf_counter()
        outcomes: dict[int, Outcome] = {
            place: ValueError("it ended the process that computed it, each time") for place in poisoned
        }
        cached = self._lookup.find(block.sequences) if self._lookup else {}
        outcomes |= {place: found for place, found in cached.items() if place not in outcomes}
        missing = [place for place in range(len(block.sequences)) if place not in outcomes]
        num_tokens = num_padded = 0
        for batch in self._batches(block, missing, alone=begin is not None):
            if begin is not None:
                begin(batch[0])
            sequences = [block.sequences[place] for place in batch]
            lengths = [len(each) + sum(self.workload.row.num_specials) for each in sequences]
            num_tokens += sum(lengths)
            num_padded += max(lengths) * len(lengths)
            outcomes |= zip(batch, self._embed(sequences), strict=True)
        return self._store(block, outcomes, num_tokens, num_padded, len(cached), started)

    def _batches(self, block: Block, missing: Sequence[int], alone: bool) -> list[list[int]]:
        if alone:
            return [[place] for place in missing]
        items = self._engine.items([block.sequences[place] for place in missing], True, self.workload.dtype)
        costs = [self._engine.cost(item) for item in items]
        return [[missing[i] for i in places] for places in plan(costs, self._engine.budget)]

    def _embed(self, sequences: Sequence[str]) -> list[Outcome]:
        items = self._engine.items(sequences, self.workload.pooled, self.workload.dtype)
        try:
            found: list[Outcome] = self._engine.embed(items)
        except OutOfMemory as error:
            if len(sequences) == 1:
                return [error]
            half = len(sequences) // 2
            return self._embed(sequences[:half]) + self._embed(sequences[half:])
        return found

    def _store(
        self,
        block: Block,
        outcomes: dict[int, Outcome],
        num_tokens: int,
        num_padded: int,
        num_cached: int,
        started: float,
    ) -> Shard:
        ids: list[str] = []
        lengths: list[int] = []
        embeddings: list[np.ndarray] = []
        failures = list(block.rejected)
        for id, place in zip(block.ids, block.places, strict=True):
            outcome, length = outcomes[place], len(block.sequences[place])
            if isinstance(outcome, Exception):
                failures.append(Failure(id, length, str(outcome)))
                continue
            ids.append(id)
            lengths.append(length)
            embeddings.append(outcome)
        name, about = shard_name(block.index, self.workload.form), self.workload.about()
        about |= {"precision": self.precision}
        content = ""

        def make(path: Path) -> None:
            nonlocal content
            write_shard(path, self.workload.form, ids, lengths, embeddings, about)
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()

        size_bytes = self._folder.write(name, make)
        return Shard(
            index=block.index,
            name=name,
            digest=block.digest,
            content=content,
            size_bytes=size_bytes,
            num_ids=len(ids),
            num_sequences=len(block.sequences),
            num_residues=block.num_residues,
            num_letters=sum(lengths) + sum(failure.length for failure in failures),
            num_tokens=num_tokens,
            num_padded=num_padded,
            num_cached=num_cached,
            busy_s=round(time.perf_counter() - started, 4),
            precision=self.precision,
            failures=failures,
        )


def _packed(workload: Workload, worker: Worker) -> Engine:
    import torch

    from models.engine import Engine
    from models.memory import give_freed_memory_back, keep_freed_memory

    folder = worker.folder
    if not folder.is_dir():
        from models import store

        stored = store.find(workload.tag)
        if stored is None:
            raise FileNotFoundError(f"neither {folder} nor {workload.tag} of the model store is on this machine")
        folder = Path(stored.path)
    give_freed_memory_back()
    torch.set_num_threads(worker.num_threads)
    engine = Engine(folder, workload.row, worker.device, workload.precision)
    keep_freed_memory()
    return engine


def _null(workload: Workload, worker: Worker) -> Any:  # noqa: ARG001
    from bulk.null import NullEngine

    return NullEngine(workload.row)


_ENGINES: dict[str, Callable[[Workload, Worker], Any]] = {"packed": _packed, "null": _null}
