"""Reading a checkpoint: a standard Hugging Face folder, checked strictly before a number is computed.

Everything but `load` works on headers alone and needs no torch, so that a service can refuse a bad
checkpoint before its port opens. config.json is read in models/configs.py.
"""

from __future__ import annotations

import json
import math
import operator
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.catalogue import Family, Model
from models.configs import CheckpointError, EncoderConfig, read_config

if TYPE_CHECKING:
    import torch

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES: Mapping[Family, tuple[str, ...]] = {
    "esm2": ("vocab.txt",),
    "t5": ("spiece.model", "tokenizer.json"),
}
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit

# Bytes of an entry, by safetensors' name of the kind; weights are of one of the kinds in _FLOATS
_ITEM_SIZES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8, "I8": 1, "U8": 1, "I16": 2, "I32": 4, "I64": 8, "BOOL": 1}
_FLOATS = ("F16", "BF16", "F32")

# Part of real checkpoints, not of an encoder: language model and contact heads, buffers, decoders
_NOT_OURS = re.compile(
    r"lm_head\.|decoder\.|contact_head\.|pooler\.|embeddings\.(position_ids|position_embeddings\.)"
    r"|.*rotary_embeddings\.inv_freq$"
)


def weight_shapes(family: Family, config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the encoder needs, in transformers' names without prefix."""
    return dict(_esm2_shapes(config) if family == "esm2" else _t5_shapes(config))


def _esm2_shapes(c: EncoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    def linear(name: str, out: int, into: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (out, into)
        yield f"{name}.bias", (out,)

    def norm(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (c.dim,)
        yield f"{name}.bias", (c.dim,)

    yield "embeddings.word_embeddings.weight", (c.vocab_size, c.dim)
    for i in range(c.num_layers):
        layer = f"encoder.layer.{i}"
        yield from norm(f"{layer}.attention.LayerNorm")
        for part in ("query", "key", "value"):
            yield from linear(f"{layer}.attention.self.{part}", c.dim, c.dim)
        yield from linear(f"{layer}.attention.output.dense", c.dim, c.dim)
        yield from norm(f"{layer}.LayerNorm")
        yield from linear(f"{layer}.intermediate.dense", c.feed_forward_dim, c.dim)
        yield from linear(f"{layer}.output.dense", c.dim, c.feed_forward_dim)
    yield from norm("encoder.emb_layer_norm_after")


def _t5_shapes(c: EncoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    inner = c.num_heads * c.head_dim
    yield "shared.weight", (c.vocab_size, c.dim)
    for i in range(c.num_layers):
        block = f"encoder.block.{i}.layer"
        for part in ("q", "k", "v"):
            yield f"{block}.0.SelfAttention.{part}.weight", (inner, c.dim)
        yield f"{block}.0.SelfAttention.o.weight", (c.dim, inner)
        if i == 0:
            yield f"{block}.0.SelfAttention.relative_attention_bias.weight", (c.num_buckets, c.num_heads)
        yield f"{block}.0.layer_norm.weight", (c.dim,)
        for part in ("wi_0", "wi_1") if c.is_gated else ("wi",):
            yield f"{block}.1.DenseReluDense.{part}.weight", (c.feed_forward_dim, c.dim)
        yield f"{block}.1.DenseReluDense.wo.weight", (c.dim, c.feed_forward_dim)
        yield f"{block}.1.layer_norm.weight", (c.dim,)
    yield "encoder.final_layer_norm.weight", (c.dim,)


def canonical_name(stored: str) -> str:
    """The name in `weight_shapes` of a tensor as stored; transformers wrote several spellings over time."""
    name = stored.removeprefix("esm.")
    if "LayerNorm." in name:
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return "shared.weight" if name == "encoder.embed_tokens.weight" else name


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its file, the name in it, its shape and kind of entries."""

    file: Path
    name: str
    shape: tuple[int, ...]
    kind: str


def _read_header(path: Path) -> list[Stored]:
    """The tensors of a safetensors file; sizes must be what the header promises.

    Source of the format: safetensors README, "Format".
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, MAX_HEADER_BYTES):
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = 0
        found: list[Stored] = []
        for name, tensor in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])):
            stored = Stored(path, name, tuple(tensor["shape"]), tensor["dtype"])
            first, last = map(operator.index, tensor["data_offsets"])
            if last - first != math.prod(stored.shape) * _ITEM_SIZES[stored.kind]:
                raise ValueError(f"{name} has not the size of its shape")
            if first != end:
                raise ValueError(f"{name} does not begin where the tensor before it ends")
            end = last
            found.append(stored)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{path} is no safetensors file: {error}") from None
    if 8 + length + end != size:
        raise CheckpointError(f"{path} is truncated: {size} bytes, its header promises {8 + length + end}")
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: one, or the shards that the index names."""
    index = folder / INDEX
    return read_index(index) if index.exists() else [folder / WEIGHTS]


def read_index(index: Path) -> list[Path]:
    """The files that an index of shards names, which lie beside it.

    Raises:
        CheckpointError: it is none, or points outside its folder.
    """
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
        is_outside = any(Path(name).name != name or name == ".." for name in names)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of shards: {error}") from None
    if is_outside:
        raise CheckpointError(f"{index} is an index that points outside the folder")
    return [index.parent / name for name in sorted(names)]


def verify(folder: Path, model: Model) -> dict[str, Stored]:
    """Checks a checkpoint against its catalogue row: config, every weight's name and shape, file sizes.

    Returns:
        Where each tensor of `weight_shapes` lies.
    Raises:
        CheckpointError: with the first difference found.
    """
    config = read_config(folder, model.family)
    for attribute in ("num_layers", "dim", "num_heads", "head_dim", "feed_forward_dim"):
        found, expected = getattr(config, attribute), getattr(model, attribute)
        if found != expected:
            raise CheckpointError(f"{folder} is not {model.name}: {attribute} is {found}, not {expected}")
    return locate(folder, model.family, config)


def locate(folder: Path, family: Family, config: EncoderConfig) -> dict[str, Stored]:
    """As `verify`, for an encoder of any size."""
    if not any((folder / name).exists() for name in TOKENIZER_FILES[family]):
        raise CheckpointError(f"{folder} holds no tokenizer: {' or '.join(TOKENIZER_FILES[family])}")
    expected = weight_shapes(family, config)
    found: dict[str, Stored] = {}
    for file in weight_files(folder):
        for stored in _read_header(file):
            name = canonical_name(stored.name)
            if name in expected:
                found[name] = stored
            elif not _NOT_OURS.match(name):
                raise CheckpointError(f"{file} holds {stored.name!r}, which a {family} encoder does not have")
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(f"{folder} lacks the weight {name!r}")
        if found[name].shape != shape:
            raise CheckpointError(f"{folder}: {name} has shape {found[name].shape}, not {shape}")
        if found[name].kind not in _FLOATS:
            raise CheckpointError(f"{folder}: {name} is of {found[name].kind}, not of {', '.join(_FLOATS)}")
    return found


def load(folder: Path, model: Model) -> tuple[EncoderConfig, dict[str, torch.Tensor]]:
    """The encoder's config and weights, memory-mapped, in the precision that they are stored in."""
    from safetensors import safe_open

    located = verify(folder, model)
    weights: dict[str, torch.Tensor] = {}
    for file in {stored.file for stored in located.values()}:
        with safe_open(file, framework="pt") as tensors:
            for name, stored in located.items():
                if stored.file == file:
                    weights[name] = tensors.get_tensor(stored.name)
    return read_config(folder, model.family), weights
