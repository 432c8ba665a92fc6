"""transformers' ESM-2 on all cores, in bfloat16, on padded batches: the arithmetic of the peers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, EsmModel

from models.cores import usable_cores
from models.memory import keep_freed_memory

FOLDER_VARIABLE = "PEER_MODEL_FOLDER"


class Encoder:
    """Means over residues. In bfloat16 transformers is twice as fast as in float32 here (docs/benchmarks.md)."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(usable_cores())
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = EsmModel.from_pretrained(folder, dtype=torch.bfloat16, add_pooling_layer=False).eval()
        keep_freed_memory()  # as our runner does

    @torch.inference_mode()
    def embed(self, sequences: Sequence[str]) -> np.ndarray:
        """(B, D) float32, all in one batch that is padded to the longest."""
        tokens = self.tokenizer(list(sequences), return_tensors="pt", padding=True)
        hidden = self.model(**tokens).last_hidden_state.float()
        is_residue = tokens["attention_mask"] * (tokens["input_ids"] != self.tokenizer.eos_token_id)
        is_residue[:, 0] = 0  # CLS
        means = (hidden * is_residue[..., None]).sum(1) / is_residue.sum(1, keepdim=True)
        found: np.ndarray = means.numpy()
        return found
