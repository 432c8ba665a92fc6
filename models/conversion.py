"""Weights in other formats into a standard Hugging Face folder: fair-esm's .pt and torch's .bin."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from models.checkpoints import read_index
from models.configs import CheckpointError, EncoderConfig
from models.folders import ESM2_VOCAB_SIZE, write_config, write_weights

TORCH_WEIGHTS = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"

# fair-esm's names and transformers'. Source: transformers, models/esm/convert_esm.py
_FAIR_ESM_NAMES = (
    (r"^embed_tokens\.", "esm.embeddings.word_embeddings."),
    (r"^layers\.(\d+)\.self_attn\.([qkv])_proj\.", r"esm.encoder.layer.\1.attention.self.\2."),
    (r"\.self\.q\.", ".self.query."),
    (r"\.self\.k\.", ".self.key."),
    (r"\.self\.v\.", ".self.value."),
    (r"^layers\.(\d+)\.self_attn\.out_proj\.", r"esm.encoder.layer.\1.attention.output.dense."),
    (r"^layers\.(\d+)\.self_attn_layer_norm\.", r"esm.encoder.layer.\1.attention.LayerNorm."),
    (r"^layers\.(\d+)\.final_layer_norm\.", r"esm.encoder.layer.\1.LayerNorm."),
    (r"^layers\.(\d+)\.fc1\.", r"esm.encoder.layer.\1.intermediate.dense."),
    (r"^layers\.(\d+)\.fc2\.", r"esm.encoder.layer.\1.output.dense."),
    (r"^emb_layer_norm_after\.", "esm.encoder.emb_layer_norm_after."),
    (r"^contact_head\.", "esm.contact_head."),
)
# Repeated by the word embeddings, or computed by every implementation
_FAIR_ESM_DROPPED = re.compile(r"^lm_head\.weight$|\.rot_emb\.inv_freq$|^version$")


def _load_torch(path: Path) -> Any:
    """A torch file without running code from it: tensors and argparse's plain Namespace only."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Files from before torch 1.6 are no zip files, and cannot be mapped
            is_zip = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path} is no readable torch file: {reason[0]}") from None


def convert_fair_esm(path: Path, folder: Path) -> None:
    """A fair-esm ESM-2 checkpoint (`esm2_*.pt`) as a Hugging Face folder in float32.

    Raises:
        CheckpointError: not a torch file, or not one of fair-esm's ESM-2.
    """
    data = _load_torch(path)
    try:
        args, state = data["cfg"]["model"], _check_state(data["model"], path)
        num_layers, dim, num_heads = (
            int(getattr(args, name)) for name in ("encoder_layers", "encoder_embed_dim", "encoder_attention_heads")
        )
        head_dim = dim // num_heads
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError, CheckpointError) as error:
        raise CheckpointError(f"{path} is no fair-esm ESM-2 checkpoint ({error})") from None
    config = EncoderConfig(
        num_layers=num_layers,
        dim=dim,
        num_heads=num_heads,
        head_dim=head_dim,
        feed_forward_dim=4 * dim,
        vocab_size=ESM2_VOCAB_SIZE,
        norm_eps=1e-5,
    )
    write_config(folder, "esm2", config, torch.float32)
    write_weights(folder, _rename(state))


def _check_state(state: Any, path: Path) -> dict[str, torch.Tensor]:
    """A state dict: tensors by name, and nothing else."""
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise CheckpointError(f"{path} holds no weights by name")
    return state


def _rename(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in state.items():
        # Both prefixes as fair-esm's _load_model_and_alphabet_core_v2 strips them
        name = re.sub(r"^encoder\.(sentence_encoder\.)?", "", name)
        if _FAIR_ESM_DROPPED.search(name):
            continue
        for pattern, replacement in _FAIR_ESM_NAMES:
            name = re.sub(pattern, replacement, name)
        yield name, tensor.float()


def convert_torch_weights(folder: Path) -> None:
    """Replaces pytorch_model.bin (or its shards) in a Hugging Face folder by safetensors, dtypes kept."""
    index = folder / TORCH_INDEX
    paths = read_index(index) if index.exists() else [folder / TORCH_WEIGHTS]
    write_weights(folder, _read_shards(paths))
    for path in paths:
        path.unlink()
    index.unlink(missing_ok=True)


def _read_shards(paths: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    seen: set[tuple[int, torch.Size]] = set()
    for path in paths:
        for name, tensor in _check_state(_load_torch(path), path).items():
            # Tied weights are stored twice under one address; safetensors wants them once
            if (key := (tensor.data_ptr(), tensor.shape)) in seen and name.endswith("embed_tokens.weight"):
                continue
            seen.add(key)
            yield name, tensor.clone()
