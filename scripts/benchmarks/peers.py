"""Other ways to the same embeddings, as their users run them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import checkpoints
from models.catalogue import Model
from scripts.benchmarks.contenders import Contender, Task

EXTRACT_TOKENS = 4096  # fair-esm scripts/extract.py, --toks_per_batch
BATCH_SIZES = (1, 2, 4, 8)
CUDA_BATCH_SIZES = (1, 2, 4, 8, 16, 32)  # a GPU wants more at a time
AS_THEY_COME = 8  # of a batch that nobody sorted

_NOT_ENCODER = re.compile(r"^lm_head\.|^contact_head\.|\.rot_emb\.inv_freq$")  # heads, and what is computed


class Transformers:
    """transformers' own model, padded batches of `batch_size`, in the order given or sorted by length."""

    def __init__(self, task: Task, dtype: torch.dtype, attention: str = "sdpa", is_compiled: bool = False) -> None:
        from transformers import AutoTokenizer, EsmModel, T5EncoderModel

        self.device = task.device
        self.is_t5 = task.model.family == "t5"
        if self.is_t5:
            self.encoder: Any = T5EncoderModel.from_pretrained(task.folder, dtype=dtype)
        else:
            self.encoder = EsmModel.from_pretrained(
                task.folder, dtype=dtype, add_pooling_layer=False, attn_implementation=attention
            )
        self.encoder = self.encoder.eval().to(task.device)
        if is_compiled:
            self.encoder = torch.compile(self.encoder, dynamic=True)
        self.tokenizer = AutoTokenizer.from_pretrained(task.folder)

    def in_batches(self, batch_size: int, is_sorted: bool) -> Contender:
        return lambda sequences: self._run(sequences, batch_size, is_sorted)

    @torch.inference_mode()
    def residues(self, sequences: Sequence[str]) -> list[np.ndarray]:
        """(L, D) float32 of each sequence, one at a time: no padding."""
        results = []
        for sequence in sequences:
            tokens = self.tokenizer(self._text(sequence), return_tensors="pt").to(self.device)
            hidden = self.encoder(**tokens).last_hidden_state[0]
            skipped = 0 if self.is_t5 else 1
            results.append(hidden[skipped : skipped + len(sequence)].float().cpu().numpy())
        return results

    @torch.inference_mode()
    def _run(self, sequences: Sequence[str], batch_size: int, is_sorted: bool) -> list[np.ndarray]:
        order = list(range(len(sequences)))
        if is_sorted:
            order.sort(key=lambda index: len(sequences[index]))
        results: list[np.ndarray] = [np.empty(0)] * len(sequences)
        skipped = 0 if self.is_t5 else 1
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            texts = [self._text(sequences[index]) for index in indices]
            tokens = self.tokenizer(texts, return_tensors="pt", padding=True).to(self.device)
            hidden = self.encoder(**tokens).last_hidden_state
            for row, index in enumerate(indices):
                residues = hidden[row, skipped : skipped + len(sequences[index])]
                results[index] = residues.float().mean(0).cpu().numpy()
        return results

    def _text(self, sequence: str) -> str:
        return " ".join(re.sub("[UZOB]", "X", sequence)) if self.is_t5 else sequence


class Extract:
    """fair-esm's scripts/extract.py: sorted by length, padded batches of at most 4,096 tokens, fp32."""

    def __init__(self, task: Task) -> None:
        from esm.data import Alphabet
        from esm.model.esm2 import ESM2

        model = task.model
        self.device = task.device
        self.alphabet = Alphabet.from_architecture("ESM-1b")
        self.encoder = ESM2(model.num_layers, model.dim, model.num_heads, self.alphabet, token_dropout=True)
        missing, unexpected = self.encoder.load_state_dict(dict(_fair_esm_names(task.folder, model)), strict=False)
        if unexpected or any(not _NOT_ENCODER.search(name) for name in missing):
            raise ValueError(f"{task.folder} does not fill fair-esm's encoder: {missing}, {unexpected}")
        self.encoder = self.encoder.eval().to(task.device)
        self.last = model.num_layers

    @torch.inference_mode()
    def __call__(self, sequences: Sequence[str]) -> list[np.ndarray]:
        from esm.data import FastaBatchedDataset

        dataset = FastaBatchedDataset([str(index) for index in range(len(sequences))], list(sequences))
        batches = dataset.get_batch_indices(EXTRACT_TOKENS, extra_toks_per_seq=1)
        loader = torch.utils.data.DataLoader(
            dataset, collate_fn=self.alphabet.get_batch_converter(), batch_sampler=batches
        )
        results: list[np.ndarray] = [np.empty(0)] * len(sequences)
        for labels, strings, tokens in loader:
            output = self.encoder(tokens.to(self.device), repr_layers=[self.last], return_contacts=False)
            hidden = output["representations"][self.last]
            for row, (label, string) in enumerate(zip(labels, strings, strict=True)):
                results[int(label)] = hidden[row, 1 : len(string) + 1].mean(0).cpu().numpy()
        return results


def _fair_esm_names(folder: Path, model: Model) -> Iterator[tuple[str, Tensor]]:
    """The encoder's weights under fair-esm's names."""
    renamed = (
        (r"^embeddings\.word_embeddings", "embed_tokens"),
        (r"^encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)", r"layers.\1.self_attn.\2_proj"),
        (r"(query|key|value)_proj", lambda match: f"{match.group(1)[0]}_proj"),
        (r"^encoder\.layer\.(\d+)\.attention\.output\.dense", r"layers.\1.self_attn.out_proj"),
        (r"^encoder\.layer\.(\d+)\.attention\.LayerNorm", r"layers.\1.self_attn_layer_norm"),
        (r"^encoder\.layer\.(\d+)\.LayerNorm", r"layers.\1.final_layer_norm"),
        (r"^encoder\.layer\.(\d+)\.intermediate\.dense", r"layers.\1.fc1"),
        (r"^encoder\.layer\.(\d+)\.output\.dense", r"layers.\1.fc2"),
        (r"^encoder\.emb_layer_norm_after", "emb_layer_norm_after"),
    )
    for name, tensor in checkpoints.load(folder, model)[1].items():
        for pattern, replacement in renamed:
            name = re.sub(pattern, replacement, name)
        yield name, tensor.float()


@dataclass(frozen=True)
class Way:
    """How an encoder of _ENCODERS is run: one row of a table."""

    encoder: str
    batch_size: int = AS_THEY_COME
    is_sorted: bool = False


_ENCODERS: Mapping[str, Callable[[Task], Transformers | Extract]] = {
    "transformers-fp32": lambda task: Transformers(task, torch.float32),
    "transformers-bf16": lambda task: Transformers(task, torch.bfloat16),
    "transformers-fa2": lambda task: Transformers(task, torch.bfloat16, attention="flash_attention_2"),
    "torch-compile": lambda task: Transformers(task, torch.bfloat16, is_compiled=True),
    "extract": Extract,
}


def known_peers(task: Task) -> dict[str, dict[str, Way]]:
    """The peers of a family on a device, each with its ways by name. Of several, the fastest counts."""
    is_cuda, is_esm2 = task.device != "cpu", task.model.family == "esm2"
    sizes = CUDA_BATCH_SIZES if is_cuda else BATCH_SIZES

    def every_size(encoder: str) -> dict[str, Way]:
        return {f"{encoder}-sorted-{size}": Way(encoder, size, is_sorted=True) for size in sizes}

    known = {name: {name: Way(name)} for name in ("transformers-fp32", "transformers-bf16")}
    known["transformers-bf16-best"] = every_size("transformers-bf16")
    if is_esm2:
        known["extract"] = {"extract": Way("extract")}
    if is_cuda:
        known["transformers-sdpa"] = {"transformers-sdpa": Way("transformers-bf16", 1, is_sorted=True)}
        known["torch-compile"] = every_size("torch-compile")
        if is_esm2:
            known["transformers-fa2"] = every_size("transformers-fa2")
    return known


class Peers:
    """Contenders by the name of their way; each encoder is loaded once."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._encoders: dict[str, Transformers | Extract] = {}

    def start(self, way: Way) -> Contender:
        """Raises whatever the peer raises: ImportError where it does not install."""
        if way.encoder not in self._encoders:
            self._encoders[way.encoder] = _ENCODERS[way.encoder](self._task)
        encoder = self._encoders[way.encoder]
        return encoder if isinstance(encoder, Extract) else encoder.in_batches(way.batch_size, way.is_sorted)
