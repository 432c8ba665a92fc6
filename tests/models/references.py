"""The reference implementations, and how far an answer of ours is from theirs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from models.catalogue import NON_STANDARD_RESIDUES, STANDARD_RESIDUES, Model
from models.checkpoints import WEIGHTS
from models.engine import Engine, Item


def random_sequence(length: int, seed: int = 0) -> str:
    """Every letter that the models know, the non-standard ones included."""
    letters = list(STANDARD_RESIDUES + NON_STANDARD_RESIDUES)
    return "".join(np.random.default_rng(seed).choice(letters, length))


def embed(engine: Engine, sequences: Sequence[str], pooled: bool = False) -> list[np.ndarray]:
    """Float32 embeddings of one batch, none of which may fail."""
    results = engine.embed([Item(sequence, pooled, "float32") for sequence in sequences])
    arrays = [result for result in results if isinstance(result, np.ndarray)]
    assert len(arrays) == len(sequences), results
    return arrays


def worst_relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest ratio, over the rows, of the difference's norm to the expected row's norm."""
    assert found.shape == expected.shape
    difference = np.linalg.norm(found.astype(np.float64) - expected, axis=-1)
    return float(np.max(difference / np.linalg.norm(expected.astype(np.float64), axis=-1)))


def worst_cosine_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Largest, over the rows, of 1 - cosine, in float64."""
    assert one.shape == other.shape
    a, b = one.astype(np.float64), other.astype(np.float64)
    cosine = np.sum(a * b, -1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return float(np.max(1 - cosine))


@torch.inference_mode()
def esm2_by_transformers(folder: Path, sequences: Sequence[str]) -> list[np.ndarray]:
    """(L, D) of each sequence alone, by transformers' EsmModel and its tokenizer."""
    from transformers import AutoTokenizer, EsmModel

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = EsmModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
    hidden = [model(**tokenizer(s, return_tensors="pt")).last_hidden_state[0] for s in sequences]
    return [states[1:-1].numpy() for states in hidden]


@torch.inference_mode()
def t5_by_transformers(folder: Path, sequences: Sequence[str]) -> list[np.ndarray]:
    """(L, D) of each sequence alone, by transformers' T5EncoderModel. Source of the steps: ProtTrans README."""
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = T5EncoderModel.from_pretrained(folder, dtype=torch.float32).eval()
    spaced = [" ".join(re.sub(r"[UZOB]", "X", sequence)) for sequence in sequences]
    hidden = [model(**tokenizer(s, return_tensors="pt")).last_hidden_state[0] for s in spaced]
    return [states[:-1].numpy() for states in hidden]


# transformers' names into fair-esm's, written apart from models/conversion.py, which goes the other way
_TO_FAIR_ESM = {
    "esm.embeddings.word_embeddings.": "embed_tokens.",
    "esm.encoder.emb_layer_norm_after.": "emb_layer_norm_after.",
    "esm.contact_head.": "contact_head.",
    "esm.encoder.layer.": "layers.",
    ".attention.self.query.": ".self_attn.q_proj.",
    ".attention.self.key.": ".self_attn.k_proj.",
    ".attention.self.value.": ".self_attn.v_proj.",
    ".attention.output.dense.": ".self_attn.out_proj.",
    ".attention.LayerNorm.": ".self_attn_layer_norm.",
    ".LayerNorm.": ".final_layer_norm.",
    ".intermediate.dense.": ".fc1.",
    ".output.dense.": ".fc2.",
}


def fair_esm_of(folder: Path, model: Model) -> torch.nn.Module:
    """fair-esm's ESM2 with the weights of a folder that models/untrained.py wrote."""
    from esm.model.esm2 import ESM2

    reference: torch.nn.Module = ESM2(model.num_layers, model.dim, model.num_heads).eval()
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        for ours, theirs in _TO_FAIR_ESM.items():
            name = name.replace(ours, theirs)
        weights[name] = tensor
    weights["lm_head.weight"] = weights["embed_tokens.weight"]
    problems = reference.load_state_dict(weights, strict=False)
    assert not problems.unexpected_keys
    assert all(name.endswith("rot_emb.inv_freq") for name in problems.missing_keys)
    return reference


@torch.inference_mode()
def embed_by_fair_esm(reference: torch.nn.Module, sequences: Sequence[str]) -> list[np.ndarray]:
    """(L, D) of each sequence alone, by fair-esm's ESM2 and its alphabet."""
    from esm.data import Alphabet

    convert = Alphabet.from_architecture("ESM-1b").get_batch_converter()
    last = reference.num_layers
    found = []
    for sequence in sequences:
        *_, tokens = convert([("", sequence)])
        found.append(reference(tokens, repr_layers=[last])["representations"][last][0, 1:-1].numpy())
    return found
