"""Writing a standard Hugging Face folder: config.json, tokenizer files, safetensors in shards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from models.catalogue import ESM2_VOCABULARY, PROT_T5_VOCABULARY, Family
from models.checkpoints import INDEX, WEIGHTS
from models.configs import EncoderConfig

MAX_SHARD_BYTES = 2_000_000_000

ESM2_VOCAB_SIZE = len(ESM2_VOCABULARY)
PROT_T5_VOCAB_SIZE = 128  # the sentinels <extra_id_99> to <extra_id_0> fill the rest


def write_config(folder: Path, family: Family, config: EncoderConfig, dtype: torch.dtype) -> None:
    """config.json as transformers reads it, and the tokenizer's files of the family."""
    fields = _esm2_config(config) if family == "esm2" else _t5_config(config)
    fields["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    _write_esm2_tokenizer(folder) if family == "esm2" else _write_prot_t5_tokenizer(folder)


def _esm2_config(c: EncoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["EsmForMaskedLM"],
        "model_type": "esm",
        "vocab_size": c.vocab_size,
        "hidden_size": c.dim,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.feed_forward_dim,
        "layer_norm_eps": c.norm_eps,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "token_dropout": True,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 1026,
        "mask_token_id": ESM2_VOCABULARY.index("<mask>"),
        "pad_token_id": ESM2_VOCABULARY.index("<pad>"),
    }


def _t5_config(c: EncoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": c.vocab_size,
        "d_model": c.dim,
        "num_layers": c.num_layers,
        "num_heads": c.num_heads,
        "d_kv": c.head_dim,
        "d_ff": c.feed_forward_dim,
        "layer_norm_epsilon": c.norm_eps,
        "feed_forward_proj": "gated-gelu" if c.is_gated else "relu",
        "relative_attention_num_buckets": c.num_buckets,
        "relative_attention_max_distance": c.max_distance,
        "dropout_rate": 0.0,
        "is_encoder_decoder": False,
        "use_cache": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def _write_esm2_tokenizer(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(ESM2_VOCABULARY) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "EsmTokenizer"}\n')


def _write_prot_t5_tokenizer(folder: Path) -> None:
    """A sentencepiece model with ProtT5's pieces, which are single residues behind a word's start."""
    from sentencepiece import sentencepiece_model_pb2 as spm

    kind = spm.ModelProto.SentencePiece
    proto = spm.ModelProto()
    specials, residues = PROT_T5_VOCABULARY[:3], PROT_T5_VOCABULARY[3:]
    for piece, piece_type in zip(specials, (kind.CONTROL, kind.CONTROL, kind.UNKNOWN), strict=True):
        proto.pieces.add(piece=piece, score=0.0, type=piece_type)
    for rank, residue in enumerate(residues):
        proto.pieces.add(piece="▁" + residue, score=-float(rank), type=kind.NORMAL)
    proto.trainer_spec.model_type = spm.TrainerSpec.UNIGRAM
    proto.trainer_spec.pad_id, proto.trainer_spec.eos_id = 0, 1
    proto.trainer_spec.unk_id, proto.trainer_spec.bos_id = 2, -1
    (folder / "spiece.model").write_bytes(proto.SerializeToString())
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "eos_token": "</s>"}
    config |= {"unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config) + "\n")


def write_weights(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Tensors into one safetensors file, or into shards with an index; one shard is held at a time."""
    shards: list[tuple[Path, list[str], int]] = []
    for shard in _cut(tensors):
        path = folder / f"shard-{len(shards)}.safetensors"
        save_file(shard, path, metadata={"format": "pt"})
        shards.append((path, list(shard), sum(tensor.nbytes for tensor in shard.values())))
    if len(shards) == 1:
        shards[0][0].rename(folder / WEIGHTS)
        return
    weight_map: dict[str, str] = {}
    for number, (path, names, _) in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        path.rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(size for *_, size in shards)}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _cut(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > MAX_SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
    yield shard
