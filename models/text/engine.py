"""Texts in, vectors out, on one device: embeddings, scores of labels, or scores of pairs.

The models are those of sentence-transformers, with prompts, pooling and what else their files say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.configs import CheckpointError
from models.guard import EmbeddingError, Guarded
from models.planning import cost
from models.text.loading import Loaded, load
from models.text.model import TextModel
from models.text.settings import TextSettings

# Cost of a batch at most, as models/engine.py has it for proteins
BUDGETS: Mapping[str, int] = {"cpu": 4096, "cuda": 32_768}
# Padding is arithmetic for nothing; a further forward pass costs about what so many tokens do
PASS_TOKENS: Mapping[str, int] = {"cpu": 64, "cuda": 1024}


@dataclass(frozen=True)
class TextItem:
    """A text as the model reads it. prompt_length: tokens at its start that the model's pooling may leave out."""

    ids: tuple[int, ...]
    types: tuple[int, ...] | None = None
    prompt_length: int | None = None


class TextEngine(Guarded[TextItem]):
    """One model on one device.

    Args:
        folder: of the model, as sentence-transformers or transformers write it.
        model: its name and what it is for.
        device: "cpu", "cuda:0", ...
        options: of the deployment.
        num_callers: how many threads call `embed`.
    Raises:
        CheckpointError: the folder does not hold such a model.
    """

    def __init__(
        self, folder: Path, model: TextModel, device: str, options: TextSettings, num_callers: int = 1
    ) -> None:
        self.model = model
        self.name = model.name
        self.device = torch.device(device)
        self.loaded: Loaded = load(folder, model.kind, self.device, options)
        self.choice = self.loaded.choice
        self.dim = self.loaded.dim
        self.num_callers = num_callers
        self._pass_tokens = PASS_TOKENS.get(self.device.type, PASS_TOKENS["cpu"])
        self._try()

    divides = False

    @property
    def budget(self) -> int:
        """Cost of a batch at most, unless the deployment says otherwise."""
        return BUDGETS.get(self.device.type, BUDGETS["cpu"])

    def cost(self, item: TextItem) -> int:
        """Cost of an item for planning, in tokens' worth of arithmetic."""
        return cost(len(item.ids), self.loaded.hidden_dim)

    def lingers(self, item: TextItem) -> bool:  # noqa: ARG002
        """Whether a result may be kept for a moment: it is a few kilobytes."""
        return True

    def num_tokens(self, item: TextItem) -> int:
        """Tokens that the model reads, special ones and prompt included."""
        return len(item.ids)

    def facts(self) -> dict[str, Any]:
        """What the gateway must know of the model, and operators like to."""
        return self.loaded.facts()

    def items(
        self,
        sequences: Sequence[Any],
        prompt_name: str | None = None,
        truncate: bool = False,
        max_length: int | None = None,
    ) -> list[TextItem | EmbeddingError]:
        """What a call asks for: texts, pairs of texts, or token ids with their special tokens.

        To be called from one thread at a time: a tokenizer keeps in itself how long its texts may be.

        prompt_name: of the model's own prompts, which goes before each text, not before token ids. truncate: what
        is longer than the limit is cut off there, else it is an error. max_length: a limit below the model's, in
        tokens.
        """
        try:
            prompt = self.loaded.prompt(prompt_name)
        except KeyError as error:
            return [EmbeddingError(str(error.args[0]))] * len(sequences)
        limit = min(max_length or self.loaded.max_tokens, self.loaded.max_tokens)
        results: list[TextItem | EmbeddingError | None] = [None] * len(sequences)
        texts: dict[type, list[int]] = {}
        for index, sequence in enumerate(sequences):
            if not isinstance(sequence, str) and not isinstance(sequence[0], str):
                results[index] = self._take_ids(sequence, limit, truncate)
            else:
                texts.setdefault(type(sequence), []).append(index)
        for kind, indices in texts.items():  # pairs and single texts are tokenised apart
            least = 1 + self.loaded.num_specials(is_pair=kind is not str)
            if limit < least:
                for index in indices:
                    results[index] = EmbeddingError(f"a text has {least} tokens at least, the limit is {limit}")
                continue
            chosen = [s if isinstance(s := sequences[index], str) else tuple(s) for index in indices]
            for index, item in zip(indices, self._tokenise(chosen, prompt, limit, truncate), strict=True):
                results[index] = item
        return [result for result in results if result is not None]

    def _take_ids(self, ids: Sequence[int], limit: int, truncate: bool) -> TextItem | EmbeddingError:
        wrong = next((id for id in ids if not 0 <= id < self.loaded.vocab_size), None)
        if wrong is not None:
            return EmbeddingError(f"token id {wrong} is not below {self.loaded.vocab_size}")
        if len(ids) <= limit:
            return TextItem(tuple(ids))
        return TextItem((*ids[: limit - 1], ids[-1])) if truncate else _too_long(len(ids), limit)

    def _tokenise(
        self, texts: Sequence[str | tuple[str, ...]], prompt: str | None, limit: int, truncate: bool
    ) -> Iterator[TextItem | EmbeddingError]:
        whole = self._preprocess(texts, prompt, None)
        lengths = [len(ids) for ids in whole["input_ids"]]
        long = [index for index, length in enumerate(lengths) if length > limit] if truncate else []
        cut = self._preprocess([texts[index] for index in long], prompt, limit) if long else {}
        places = {index: place for place, index in enumerate(long)}
        for index, length in enumerate(lengths):
            if length > limit and not truncate:
                yield _too_long(length, limit)
                continue
            source, place = (cut, places[index]) if index in places else (whole, index)
            ids, types = source["input_ids"][place], source.get("token_type_ids")
            assert len(ids) <= limit, "a tokenizer cuts off where it is told to"
            yield TextItem(tuple(ids), None if types is None else tuple(types[place]), source.get("prompt_length"))

    def _preprocess(
        self, texts: Sequence[str | tuple[str, ...]], prompt: str | None, limit: int | None
    ) -> Mapping[str, Any]:
        """Token ids as lists, one a text; cut off at the limit, if there is one, as the tokenizer does it."""
        cut = {"truncation": False} if limit is None else {"truncation": "longest_first", "max_length": limit}
        asked = {"text": {"padding": False, "verbose": False, **cut}, "common": {"return_tensors": None}}
        found: Mapping[str, Any] = self.loaded.network.preprocess(
            list(texts), prompt=prompt, processing_kwargs=asked
        )
        return found

    @torch.inference_mode()
    def _try(self) -> None:
        """One pass: what does not run, or must be compiled first, is found before anybody asks."""
        try:
            (item,) = self.items([("a", "b") if self.model.kind == "reranking" else "a"])
            if isinstance(item, EmbeddingError):
                raise item
            self._run([item])
        except Exception as error:
            raise CheckpointError(f"{self.name} does not run: {type(error).__name__}: {error}") from error

    def _measure(self, items: Sequence[TextItem]) -> str:
        return f"{sum(len(item.ids) for item in items)} tokens"

    @torch.inference_mode()
    def _embed(self, items: Sequence[TextItem]) -> list[np.ndarray | EmbeddingError]:
        guard = torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()
        results: list[np.ndarray | EmbeddingError | None] = [None] * len(items)
        with guard:
            passes = [
                (group, self._run([items[index] for index in group])) for group in alike(items, self._pass_tokens)
            ]
            for group, output in passes:
                rows = output.float().cpu().numpy()
                finite = np.isfinite(rows).all(1)
                for index, row, is_finite in zip(group, rows, finite, strict=True):
                    error = EmbeddingError("the model's output is not finite for this text")
                    results[index] = row if is_finite else error
        return [result for result in results if result is not None]

    def _run(self, items: Sequence[TextItem]) -> Tensor:
        """(B, dim) of the model, for texts of about one length."""
        side = self.loaded.padding_side
        features: dict[str, Any] = {
            "input_ids": padded([item.ids for item in items], self.loaded.padding_id or 0, side),
            "attention_mask": padded([(1,) * len(item.ids) for item in items], 0, side),
            "modality": "text",
        }
        if self.loaded.reads_types:
            types = [item.types or (0,) * len(item.ids) for item in items]
            features["token_type_ids"] = padded(types, 0, side)
        if items[0].prompt_length is not None:
            features["prompt_length"] = items[0].prompt_length
        moved = {name: v.to(self.device) if isinstance(v, Tensor) else v for name, v in features.items()}
        output: Tensor = self.loaded.network(moved)[self.loaded.output]
        return output.reshape(len(items), self.dim)


def alike(items: Sequence[TextItem], pass_tokens: int) -> Iterator[list[int]]:
    """Indices of items that go into one pass: of the same prompt, and with little padding between them.

    Longest first; texts join until the padding of the pass costs more than `pass_tokens`, those of a further one.
    """
    order = sorted(range(len(items)), key=lambda i: (items[i].prompt_length or 0, -len(items[i].ids)))
    group: list[int] = []
    padding = 0
    for index in order:
        if group:
            longest, item = items[group[0]], items[index]
            padding += len(longest.ids) - len(item.ids)
            if item.prompt_length != longest.prompt_length or padding > pass_tokens:
                yield group
                group, padding = [], 0
        group.append(index)
    if group:
        yield group


def padded(rows: Sequence[Sequence[int]], value: int, side: str) -> Tensor:
    """(B, L) int64: rows filled up to the longest on that side."""
    longest = max(map(len, rows))
    gaps = [[value] * (longest - len(row)) for row in rows]
    return torch.tensor(
        [[*gap, *row] if side == "left" else [*row, *gap] for gap, row in zip(gaps, rows, strict=True)]
    )


def _too_long(length: int, limit: int) -> EmbeddingError:
    return EmbeddingError(f"{length} tokens are more than the limit of {limit}; ask for truncation, or cut it")
