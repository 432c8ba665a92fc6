"""The engine as a contender."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from models.backends.choice import choose
from models.engine import Engine, Item
from models.guard import EmbeddingError
from models.planning import plan
from scripts.benchmarks.contenders import Task

USES_KERNELS: Mapping[str, bool] = {"native": True, "torch": False}  # by the name of a backend


class Packed:
    """All sequences, longest first, in batches of the budget, by as many threads as a runner has."""

    def __init__(self, task: Task, backend: str = "native") -> None:
        device = torch.device(task.device)
        choice = choose(device, task.model.family, task.precision, USES_KERNELS[backend])
        self.engine = Engine(task.folder, task.model, task.device, choice=choice)
        self.budget = task.budget_tokens or self.engine.budget

    def describe(self) -> dict[str, Any]:
        """What the engine is, for the JSON line; why, printed."""
        choice = self.engine.choice
        print(f"engine: {choice.precision} ({choice.precision_reason}); {choice.backend_reason}")
        return {
            "precision": choice.precision,
            "backend": choice.backend.description,
            "budget_tokens": self.budget,
        }

    def __call__(self, sequences: Sequence[str]) -> list[np.ndarray]:
        return self.embed(sequences, self.budget)

    def embed(self, sequences: Sequence[str], budget: int) -> list[np.ndarray]:
        """(D,) float32 mean of each sequence; raises the error of one that failed."""
        results = []
        for result in self._run([Item(sequence, pooled=True, dtype="float32") for sequence in sequences], budget):
            if isinstance(result, EmbeddingError):
                raise result
            results.append(result)
        return results

    def residues(self, sequences: Sequence[str]) -> list[np.ndarray | EmbeddingError]:
        """(L, D) float32 of each sequence, or why not."""
        return self._run([Item(sequence, pooled=False, dtype="float32") for sequence in sequences], self.budget)

    def _run(self, items: Sequence[Item], budget: int) -> list[np.ndarray | EmbeddingError]:
        order = sorted(range(len(items)), key=lambda index: -len(items[index].sequence))
        costs = [self.engine.cost(items[index]) for index in order]
        if self.engine.divides and sum(costs) > budget:
            budget //= self.engine.num_callers
        batches = [[order[place] for place in places] for places in plan(costs, budget)]
        results: dict[int, np.ndarray | EmbeddingError] = {}
        for batch, found in zip(batches, self._embed_each(batches, items), strict=True):
            results |= zip(batch, found, strict=True)
        return [results[index] for index in range(len(items))]

    def _embed_each(
        self, batches: Sequence[Sequence[int]], items: Sequence[Item]
    ) -> list[list[np.ndarray | EmbeddingError]]:
        embed = self.engine.embed_share if self.engine.divides and len(batches) > 1 else self.engine.embed

        def run(batch: Sequence[int]) -> list[np.ndarray | EmbeddingError]:
            return embed([items[index] for index in batch])

        if self.engine.num_callers == 1 or len(batches) == 1:
            return [run(batch) for batch in batches]
        with ThreadPoolExecutor(self.engine.num_callers) as threads:
            return list(threads.map(run, batches))
