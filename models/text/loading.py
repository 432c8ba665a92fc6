"""From the folder of a text model to a network on a device, and what must be known of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import nn

from models.configs import CheckpointError
from models.text.model import ST_MODULES, Kind
from models.text.settings import TextSettings

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEFAULT_MAX_TOKENS = 8192  # of a text, where neither the model nor its tokenizer knows a limit

Activation = Literal["sigmoid", "softmax", "identity"]
# Source: transformers, PreTrainedConfig.problem_type, and the loss that goes with each
_ACTIVATIONS: Mapping[str | None, Activation] = {
    "multi_label_classification": "sigmoid",
    "regression": "identity",
    "single_label_classification": "softmax",
    None: "softmax",
}
_SCORES: Mapping[type[nn.Module], Activation] = {nn.Sigmoid: "sigmoid", nn.Identity: "identity"}


@dataclass(frozen=True)
class TextChoice:
    """As models.backends.choice.Choice says it of proteins."""

    precision: str
    precision_reason: str
    backend_reason: str


@dataclass(frozen=True)
class Loaded:
    """A network, and what it takes and gives.

    output: name of the output that is wanted, (B, dim). max_tokens: of a text, special ones included.
    activation: what makes scores of the outputs of a classifier or cross-encoder.
    """

    network: SentenceTransformer | CrossEncoder
    kind: Kind
    choice: TextChoice
    output: str
    dim: int
    hidden_dim: int
    max_tokens: int
    vocab_size: int
    labels: tuple[str, ...]
    activation: Activation
    is_compiled: bool

    @property
    def config(self) -> Any:
        """Of transformers."""
        return self.network.config

    @property
    def padding_id(self) -> int | None:
        """None: the model was not made for texts of several lengths in one pass."""
        for named in (self.network.tokenizer, self.config):
            if (found := getattr(named, "pad_token_id", None)) is not None:
                return int(found)
        return None

    def num_specials(self, is_pair: bool) -> int:
        """Tokens that the tokenizer adds to a text, or a pair."""
        return int(self.network.tokenizer.num_special_tokens_to_add(pair=is_pair))

    @property
    def padding_side(self) -> str:
        return str(self.network.tokenizer.padding_side)

    @property
    def reads_types(self) -> bool:
        return "token_type_ids" in self.network.tokenizer.model_input_names

    def prompt(self, name: str | None) -> str | None:
        """The text that goes before others under this name; the model's default without one.

        Raises:
            KeyError: the model knows no such prompt.
        """
        name = name or self.network.default_prompt_name
        if name is None:
            return None
        if name not in self.network.prompts:
            raise KeyError(
                f"no prompt is named {name!r}; the model has {', '.join(self.network.prompts) or 'none'}"
            )
        return self.network.prompts[name] or None

    def facts(self) -> dict[str, Any]:
        """As JSON: for the gateway, which scores and names by it, and for people."""
        network, config = self.network, self.config
        return {
            "kind": self.kind,
            "dim": self.dim,
            "max_tokens": self.max_tokens,
            "labels": list(self.labels),
            "activation": self.activation,
            "is_normalized": any(isinstance(module, Normalize) for module in network.children()),
            "pooling": next((m.pooling_mode for m in network.children() if isinstance(m, Pooling)), None),
            "prompts": dict(network.prompts),
            "num_parameters": sum(weight.numel() for weight in network.parameters()),
            "dtype": str(network.dtype),
            "architecture": type(network.transformers_model).__name__,
            "attention": str(config._attn_implementation),
            "is_compiled": self.is_compiled,
        }


def load(folder: Path, kind: Kind, device: torch.device, options: TextSettings) -> Loaded:
    """A network with all its weights. Code that a folder may hold is not run.

    Raises:
        CheckpointError: it cannot be read, lacks a weight, or scores in a way that is not known.
    """
    precision = "fp32" if options.precision == "auto" else options.precision
    arguments: dict[str, Any] = {"dtype": DTYPES[precision]}
    try:
        network, attention = _load_with_attention(folder, kind, device, options, arguments)
        if network.transformers_model is None or network.tokenizer is None:
            raise CheckpointError(f"{folder} is not built on an encoder of transformers")
        _require_all_weights(folder, network, arguments)
    except CheckpointError:
        raise
    except Exception as error:  # of json, safetensors, tokenizers, or a library that the model wants
        raise CheckpointError(f"{folder} cannot be loaded: {type(error).__name__}: {error}") from error
    network.eval()
    config: Any = network.config
    labels = () if kind == "embedding" else tuple(config.id2label[i] for i in range(config.num_labels))
    if options.compiled:
        network.compile(dynamic=True)
    return Loaded(
        network=network,
        kind=kind,
        choice=TextChoice(
            precision,
            "asked for by TEXT_PRECISION"
            if options.precision != "auto"
            else "texts are computed as they were trained",
            f"sentence-transformers, {attention}{', compiled' if options.compiled else ''}",
        ),
        output="sentence_embedding" if kind == "embedding" else "scores",
        dim=_dim(network) if kind == "embedding" else len(labels),
        hidden_dim=int(config.get_text_config().hidden_size),
        max_tokens=_max_tokens(network),
        vocab_size=int(config.get_text_config().vocab_size),
        labels=labels,
        activation=_activation(folder, kind, network),
        is_compiled=options.compiled,
    )


def _load_with_attention(
    folder: Path, kind: Kind, device: torch.device, options: TextSettings, arguments: dict[str, Any]
) -> tuple[SentenceTransformer | CrossEncoder, str]:
    """The network with the attention that is asked for, and which it has, in words.

    Not every architecture has every implementation (DeBERTa-v2 knows `eager` alone): transformers chooses then.
    """
    make = SentenceTransformer if kind == "embedding" else CrossEncoder

    def load_as(attention: dict[str, Any]) -> SentenceTransformer | CrossEncoder:
        network = make(str(folder), device=str(device), local_files_only=True, model_kwargs=arguments | attention)
        if hasattr(network[0], "unpad_inputs"):
            network[0].unpad_inputs = False  # a batch has rows here, as everything behind it expects
        return network

    if options.attention == "auto":
        network = load_as({})
        return network, str(network.config._attn_implementation)  # type: ignore[union-attr]
    try:
        network = load_as({"attn_implementation": options.attention})
        return network, options.attention
    except ValueError as error:
        if "does not support" not in str(error):
            raise
        network = load_as({})
        found = network.config._attn_implementation  # type: ignore[union-attr]
        return network, f"{found}, as it does not have {options.attention}"


def _dim(network: SentenceTransformer | CrossEncoder) -> int:
    assert isinstance(network, SentenceTransformer)
    dim = network.get_embedding_dimension()
    assert dim is not None, "a model with a pooling layer knows its dimension"
    return dim


def _max_tokens(network: SentenceTransformer | CrossEncoder) -> int:
    """The least limit of those that the model's files name; a tokenizer without one says 10^30."""
    known = [network.max_seq_length or 0, _num_positions(network)]
    return min((limit for limit in known if 0 < limit < 10**9), default=DEFAULT_MAX_TOKENS)


def _num_positions(network: SentenceTransformer | CrossEncoder) -> int:
    """Rows of the table of positions that a text can use; 0 where the model has none.

    RoBERTa and what descends from it begins behind the row of its padding: transformers, modeling_roberta.py,
    create_position_ids_from_input_ids.
    """
    model = network.transformers_model
    assert model is not None
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return int(getattr(network.config, "max_position_embeddings", 0) or 0)


def _activation(folder: Path, kind: Kind, network: SentenceTransformer | CrossEncoder) -> Activation:
    if isinstance(network, SentenceTransformer):
        return "identity"
    if kind == "classification":
        return _ACTIVATIONS[getattr(network.config, "problem_type", None)]
    for function, activation in _SCORES.items():
        if isinstance(network.activation_fn, function):
            return activation
    raise CheckpointError(f"{folder} scores by {type(network.activation_fn).__name__}; known: Sigmoid, Identity")


def _require_all_weights(
    folder: Path, network: SentenceTransformer | CrossEncoder, arguments: Mapping[str, Any]
) -> None:
    """transformers fills a weight that is not in the checkpoint with noise, and warns: here that is an error.

    A pooler may be missing: bi-encoders pool in a module of their own.
    """
    modules = folder / ST_MODULES
    part = json.loads(modules.read_text())[0]["path"] if modules.exists() else ""
    model = network.transformers_model
    assert model is not None
    _, info = type(model).from_pretrained(
        folder / part, local_files_only=True, output_loading_info=True, **arguments
    )
    is_bi_encoder = isinstance(network, SentenceTransformer)
    missing = sorted(name for name in info["missing_keys"] if not (is_bi_encoder and "pooler." in name))
    if missing:
        raise CheckpointError(f"{folder} lacks the weight {missing[0]!r} and {len(missing) - 1} others")
