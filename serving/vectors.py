"""What models make of inputs, for the routes that answer in JSON: proteins go one way, texts the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.text.model import Kind
from serving.errors import (
    InferenceFailed,
    InvalidRequest,
    InvalidSequences,
    InvalidTexts,
    NoSuchModel,
    Problem,
    ServiceError,
    TooManySequences,
)
from serving.gateway import Gateway
from serving.pipeline import MemorySink, Report
from serving.runners import ServedModel, Terms
from serving.schemas import ComputeOptions
from serving.sequences import Protein, Record, default_id
from serving.texts import Text, TextOptions, TextReport
from serving.threads import run_to_its_end


@dataclass(frozen=True)
class Vectors:
    """rows: (B, D) float32. num_tokens: that were read, special ones included. is_normalized: all of length 1."""

    model: str
    rows: np.ndarray
    num_tokens: int
    is_normalized: bool


@dataclass(frozen=True)
class Proteins:
    """Cleaned proteins, the mean of each, (B, D) float32, and what happened on the way."""

    served: ServedModel
    proteins: Sequence[Protein]
    rows: np.ndarray
    report: Report


@dataclass(frozen=True)
class Scores:
    """Of classes or pairs. raw: (B, labels), as the model gives them; report: what happened on the way."""

    model: str
    raw: np.ndarray
    report: TextReport

    @property
    def labels(self) -> list[str]:
        labels: list[str] = self.report.description["facts"]["labels"]
        return labels

    def by(self, function: str | None = None) -> np.ndarray:
        """(B, labels) after a function: sigmoid, softmax or identity; the model's own by default."""
        return activate(self.raw, function or self.report.description["facts"]["activation"])


async def embed(
    gateway: Gateway, name: str | None, inputs: Sequence[Text], options: TextOptions, terms: Terms
) -> Vectors:
    """Embeddings of texts, proteins, or token ids of either.

    Raises:
        UnknownModel, NoSuchModel: no embedding model is served under this name, or none at all.
        InvalidSequences, InvalidTexts: some cannot be embedded; each is named.
        TooManySequences, InvalidRequest, and what the pipelines raise.
    """
    name = name or gateway.models.default_embedder
    if name is None:
        raise NoSuchModel("no model for embedding is served here; MODELS and TEXT_MODELS name those that are")
    if (served := gateway.models.by_name.get(name)) is not None:
        if options.prompt_name is not None:
            raise InvalidRequest(f"prompt_name: {name} reads proteins and has no prompts")
        letters = _spell(served, inputs)
        found = await embed_proteins(gateway, served, letters, terms, options.truncate)
        num_specials = sum(served.model.num_specials)
        num_tokens = sum(len(protein.sequence) + num_specials for protein in found.proteins)
        return Vectors(served.model.name, found.rows, num_tokens, is_normalized=False)
    if options.prompt_name is not None and any(not isinstance(text, str) for text in inputs):
        raise InvalidRequest("prompt_name: a prompt goes before a text, not before token ids")
    report = await _run(gateway, name, "embedding", inputs, options, terms)
    is_normalized = report.description["facts"]["is_normalized"]
    return Vectors(name, report.vectors, sum(report.num_tokens), is_normalized)


async def embed_proteins(
    gateway: Gateway, served: ServedModel, sequences: Sequence[str], terms: Terms, truncate: bool = False
) -> Proteins:
    """Means over residues, all or none: these replies have no room for parts.

    Raises:
        InvalidSequences, TooManySequences, InferenceFailed, and what the pipeline raises.
    """
    records = [Record(default_id(index), sequence) for index, sequence in enumerate(sequences)]
    wanted = ComputeOptions(dtype="float32", on_too_long="truncate" if truncate else "error")
    size = sum(map(len, sequences))
    proteins, options = await run_to_its_end(lambda: gateway.prepare(served, records, wanted), size)
    sink = MemorySink()
    report = await gateway.pipeline.embed(served, proteins, options, sink, terms)
    if report.errors:
        index, reason = next(iter(report.errors.items()))
        raise InferenceFailed(f"sequence {index}: {reason}")
    return Proteins(served, proteins, np.stack([sink.embeddings[i] for i in range(len(proteins))]), report)


async def score(
    gateway: Gateway, name: str | None, kind: Kind, inputs: Sequence[Text], options: TextOptions, terms: Terms
) -> Scores:
    """What a classifier or cross-encoder makes of texts or pairs.

    Raises:
        UnknownModel, NoSuchModel: none of this kind is served, or none under this name.
        InvalidTexts, TooManySequences, and what the pipeline raises.
    """
    name = name or gateway.models.default_text(kind)
    report = await _run(gateway, name, kind, inputs, options, terms)
    return Scores(name, report.vectors, report)


async def _run(
    gateway: Gateway, name: str, kind: Kind, inputs: Sequence[Text], options: TextOptions, terms: Terms
) -> TextReport:
    served = gateway.models.find_text(name, kind)
    limit = gateway.settings.max_texts(kind)
    if not inputs:
        raise InvalidRequest("there is no text")
    if len(inputs) > limit:
        raise TooManySequences(len(inputs), limit, "texts")
    blank = [index for index, text in enumerate(inputs) if _is_blank(text)]
    if blank:
        raise InvalidTexts([Problem(index, "it is empty", kind="text") for index in blank])
    return await gateway.texts.run(served, inputs, options, terms)


def _is_blank(text: Text) -> bool:
    if isinstance(text, str):
        return not text.strip()
    return not text or any(isinstance(part, str) and not part.strip() for part in text)


def _spell(served: ServedModel, inputs: Sequence[Text]) -> list[str]:
    """The letters of proteins that came as token ids."""
    letters: list[str] = []
    problems: list[Problem] = []
    for index, sequence in enumerate(inputs):
        if isinstance(sequence, str):
            letters.append(sequence)
            continue
        try:
            letters.append(served.model.spell([int(id) for id in sequence]))
        except ValueError as error:
            problems.append(Problem(index, str(error)))
    if problems:
        raise InvalidSequences(problems)
    return letters


def activate(raw: np.ndarray, function: str) -> np.ndarray:
    """(B, N) scores of (B, N) outputs: each by itself, or all of a row together."""
    if function == "identity":
        return raw
    raw = raw.astype(np.float64)
    if function == "sigmoid":
        scores: np.ndarray = 1 / (1 + np.exp(-raw))
        return scores
    if function == "softmax":
        powers = np.exp(raw - raw.max(axis=1, keepdims=True))
        shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
        return shares
    raise ServiceError(f"no function is named {function}")
