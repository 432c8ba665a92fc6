"""POST /predict: embeddings of proteins, or classes of texts, told apart by the body's fields."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request

from serving import dialect_examples
from serving.bodies import body_schema, read_json
from serving.dialects import (
    Classified,
    Distribution,
    Label,
    PredictedProtein,
    ProteinBatch,
    ProteinBatchPredicted,
    ProteinPredicted,
    ProteinPrediction,
    TeiPredict,
    TextClassification,
    TextClassified,
)
from serving.errors import InvalidRequest
from serving.gateway import Gateway, gateway_of
from serving.routes.responses import ERRORS, computed
from serving.runners import Terms
from serving.texts import Text, TextOptions
from serving.vectors import Proteins, Scores, embed_proteins, score

router = APIRouter(tags=["predict"])

CACHED = -1  # gpu_id of what no device had to compute
_CACHE = "cache"
_FUNCTIONS = {"softmax": "softmax", "sigmoid": "sigmoid", "none": "identity"}


@router.post(
    "/predict",
    response_model=ProteinPredicted | TextClassified | list[Label] | list[list[Label]],
    responses=computed(dialect_examples.PREDICTED) | ERRORS,
    openapi_extra=body_schema(ProteinPrediction, TextClassification, TeiPredict),
)
async def predict(
    request: Request, gateway: Annotated[Gateway, Depends(gateway_of)]
) -> ProteinPredicted | TextClassified | list[Label] | list[list[Label]]:
    """A protein's embedding (`sequence`), or classes of texts (`texts`; in TEI's shape `inputs`)."""
    terms = gateway.terms(request)
    kinds: dict[str, type[ProteinPrediction | TextClassification | TeiPredict]] = {
        "sequence": ProteinPrediction,
        "texts": TextClassification,
        "inputs": TeiPredict,
    }
    body = await read_json(request, terms, kinds)
    if isinstance(body, ProteinPrediction):
        return await _predict_protein(gateway, body, terms)
    if isinstance(body, TextClassification):
        return await _classify(gateway, body, terms)
    return await _label(gateway, body, terms)


@router.post(
    "/predict/batch",
    response_model=ProteinBatchPredicted,
    responses=computed(dialect_examples.PREDICTED_BATCH) | ERRORS,
    openapi_extra=body_schema(ProteinBatch),
)
async def predict_batch(
    request: Request, gateway: Annotated[Gateway, Depends(gateway_of)]
) -> ProteinBatchPredicted:
    """Embeddings of up to 64 proteins, in order, and which device computed each."""
    terms = gateway.terms(request)
    body = await read_json(request, terms, {"sequences": ProteinBatch})
    served = gateway.models.find(body.model or gateway.models.default_protein)
    found = await embed_proteins(gateway, served, body.sequences, terms)
    total_ms = found.report.total_ms
    return ProteinBatchPredicted(
        results=_predicted(found, body),
        total_sequences=len(found.proteins),
        total_inference_time_ms=round(total_ms, 3),
        average_time_per_sequence_ms=round(total_ms / len(found.proteins), 3),
        distribution_info=_distribution(found),
        model_name=served.model.name,
    )


async def _predict_protein(gateway: Gateway, body: ProteinPrediction, terms: Terms) -> ProteinPredicted:
    served = gateway.models.find(body.model or gateway.models.default_protein)
    found = await embed_proteins(gateway, served, [body.sequence], terms)
    (one,) = _predicted(found, body)
    time_ms = round(found.report.total_ms, 3)
    return ProteinPredicted(**one.model_dump(), inference_time_ms=time_ms, model_name=served.model.name)


def _predicted(found: Proteins, wanted: ProteinPrediction | ProteinBatch) -> list[PredictedProtein]:
    row = found.served.model
    results: list[PredictedProtein] = []
    for index, protein in enumerate(found.proteins):
        num_tokens = len(protein.sequence) + sum(row.num_specials)
        results.append(
            PredictedProtein(
                sequence=protein.sequence,
                sequence_length=len(protein.sequence),
                embedding=found.rows[index].tolist() if wanted.include_embeddings else None,
                embedding_dim=row.dim if wanted.include_embeddings else None,
                attention_shape=[row.num_heads, num_tokens, num_tokens] if wanted.include_attention else None,
                gpu_id=_gpu_id(found.report.devices.get(index)),
            )
        )
    return results


def _gpu_id(device: str | None) -> int:
    """Of "cuda:3", 3; the CPU counts as the only device."""
    if device is None:
        return CACHED
    return int(device.partition(":")[2] or 0)


def _distribution(found: Proteins) -> Distribution:
    assignments: dict[str, list[int]] = {}
    for index in range(len(found.proteins)):
        gpu_id = _gpu_id(found.report.devices.get(index))
        assignments.setdefault(_CACHE if gpu_id == CACHED else f"gpu_{gpu_id}", []).append(index)
    return Distribution(
        total_sequences=len(found.proteins),
        num_gpus_used=len(assignments.keys() - {_CACHE}),
        sequences_per_gpu={name: len(indices) for name, indices in assignments.items()},
        gpu_assignments=assignments,
    )


async def _classify(gateway: Gateway, body: TextClassification, terms: Terms) -> TextClassified:
    texts: Sequence[Text] = [body.texts] if isinstance(body.texts, str) else body.texts
    options = TextOptions(truncate=body.truncate, max_tokens=body.max_length)
    found = await score(gateway, body.model_name, "classification", texts, options, terms)
    results = [
        Classified(
            prediction=int(np.argmax(row)),
            probabilities=row.tolist(),
            label=found.labels[int(np.argmax(row))],
            text=str(text),
        )
        for text, row in zip(texts, found.by(), strict=True)
    ]
    return TextClassified(
        request_id=uuid.uuid4().hex,
        results=results[0] if isinstance(body.texts, str) else results,
        processing_time=round(found.report.total_ms / 1e3, 6),
        model_used=found.model,
    )


async def _label(gateway: Gateway, body: TeiPredict, terms: Terms) -> list[Label] | list[list[Label]]:
    texts, is_one = _texts_of(body.inputs)
    asked = body.parameters
    found = await score(gateway, body.model, "classification", texts, TextOptions(truncate=body.truncate), terms)
    function: str | None = "identity" if body.raw_scores else None
    if asked is not None and asked.function_to_apply is not None:
        function = _FUNCTIONS[asked.function_to_apply]
    most = asked.top_k if asked is not None else None
    labelled = [_best_first(found, row)[:most] for row in found.by(function)]
    return labelled[0] if is_one else labelled


def _best_first(found: Scores, row: np.ndarray) -> list[Label]:
    order = np.argsort(-row, kind="stable")
    return [Label(score=float(row[i]), label=found.labels[i]) for i in order]


def _texts_of(inputs: str | Sequence[Any]) -> tuple[list[Text], bool]:
    """The texts and pairs of text-embeddings-inference's `inputs`, and whether it is one alone.

    Source: text-embeddings-inference, router/src/http/types.rs, PredictInput.
    """
    if isinstance(inputs, str) or (inputs and isinstance(inputs[0], str)):
        return [_text_or_pair(inputs)], True
    return [_text_or_pair(one) for one in inputs], False


def _text_or_pair(one: str | Sequence[str]) -> Text:
    if isinstance(one, str):
        return one
    if len(one) == 1:
        return one[0]
    if len(one) == 2:
        return one[0], one[1]
    raise InvalidRequest(
        f"inputs: {len(one)} texts together; one is a text, two are a pair, [[..], [..]] are several"
    )
