"""From letters to token ids: one table of 256 entries, filled once from the checkpoint's own tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.catalogue import Model
from models.configs import CheckpointError

_UNKNOWN = -1


class UnknownResidue(ValueError):
    """A letter that the model has no token for."""

    def __init__(self, letter: str, position: int) -> None:
        super().__init__(f"{letter!r} at position {position} is not in the model's vocabulary")


@dataclass(frozen=True)
class ResidueTable:
    """Token ids by byte, and the special tokens around a sequence."""

    ids: np.ndarray
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    def encode(self, sequence: str) -> np.ndarray:
        """Token ids, (L + specials,) int64.

        Raises:
            UnknownResidue: with the letter and its 1-based position.
        """
        letters = np.frombuffer(sequence.encode("latin-1", "replace"), dtype=np.uint8)
        ids = self.ids[letters]
        if len(unknown := np.flatnonzero(ids == _UNKNOWN)):
            raise UnknownResidue(sequence[unknown[0]], int(unknown[0]) + 1)
        return np.concatenate([self.prefix, ids, self.suffix]).astype(np.int64)


def residue_table(folder: Path, model: Model, vocab_size: int) -> ResidueTable:
    """The table of a checkpoint, read through transformers' tokenizer.

    Raises:
        CheckpointError: an id is beyond the rows of the word embeddings.

    ProtT5's vocabulary holds residues as words, hence the sentencepiece mark of a word's start.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    word_start = "▁" if model.family == "t5" else ""
    ids = np.full(256, _UNKNOWN, dtype=np.int64)
    for letter in sorted(model.alphabet):
        read_as = model.replaced_residues.get(letter, letter)
        token = tokenizer.convert_tokens_to_ids(word_start + read_as)
        if token is not None and token != tokenizer.unk_token_id:
            ids[ord(letter)] = token
    prefix = (tokenizer.cls_token_id,) if model.family == "esm2" else ()
    suffix = (tokenizer.eos_token_id,)
    if (largest := max(*prefix, *suffix, int(ids.max()))) >= vocab_size:
        raise CheckpointError(f"the tokenizer gives id {largest}, the model has {vocab_size} word embeddings")
    return ResidueTable(ids, prefix, suffix)
