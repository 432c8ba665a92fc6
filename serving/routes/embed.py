"""POST /embed: vectors in the reply, for texts and proteins, in three dialects; POST /rerank, in two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Request, Response

from serving import dialect_examples
from serving.bodies import body_schema, read_json
from serving.dialects import (
    EmbedInput,
    InputEmbedded,
    InputText,
    InputTextEmbedded,
    Ranked,
    Rerank,
    Reranked,
    TeiEmbed,
    TeiEmbedded,
    TeiRerank,
    Usage,
)
from serving.errors import InvalidRequest
from serving.gateway import Gateway, gateway_of
from serving.routes.responses import ERRORS, computed, written
from serving.texts import Text, TextOptions
from serving.vectors import Vectors, embed, score

router = APIRouter(tags=["embed"])


@router.post(
    "/embed",
    response_model=InputTextEmbedded | InputEmbedded | TeiEmbedded,
    responses=computed(dialect_examples.EMBEDDED) | ERRORS,
    openapi_extra=body_schema(InputText, EmbedInput, TeiEmbed),
)
async def embed_inputs(request: Request, gateway: Annotated[Gateway, Depends(gateway_of)]) -> Response:
    """Embeddings of a text (`input_text`), of texts or proteins (`input`), or as text-embeddings-inference has it
    (`inputs`)."""
    terms = gateway.terms(request)
    kinds: dict[str, type[InputText | EmbedInput | TeiEmbed]] = {
        "input_text": InputText,
        "input": EmbedInput,
        "inputs": TeiEmbed,
    }
    body = await read_json(request, terms, kinds)
    if isinstance(body, InputText):
        options = TextOptions(truncate=body.truncate)
        found = await embed(gateway, body.model, [body.input_text], options, terms)
        return written(InputTextEmbedded(embedding=found.rows[0].tolist(), model=found.model))
    options = TextOptions(body.prompt_name, body.truncate)
    if isinstance(body, EmbedInput):
        texts: Sequence[Text] = [body.input] if isinstance(body.input, str) else body.input
        found = await embed(gateway, body.model, texts, options, terms)
        usage = Usage(total_tokens=found.num_tokens)
        return written(InputEmbedded(embeddings=found.rows.tolist(), model=found.model, usage=usage))
    found = await embed(gateway, body.model, as_texts(body.inputs), options, terms)
    if body.normalize is False and found.is_normalized:
        raise InvalidRequest(f"normalize: {found.model} normalises by itself")
    rows = shortened(found, body.dimensions)
    if body.normalize:
        rows = normalised(rows)
    return written(TeiEmbedded(rows.tolist()))


@router.post(
    "/rerank",
    response_model=Reranked | list[Ranked],
    response_model_exclude_none=True,
    responses=computed(dialect_examples.RERANKED) | ERRORS,
    openapi_extra=body_schema(Rerank, TeiRerank),
)
async def rerank(request: Request, gateway: Annotated[Gateway, Depends(gateway_of)]) -> Reranked | list[Ranked]:
    """Documents in the order of what they have to say to a query, best first."""
    terms = gateway.terms(request)
    kinds: dict[str, type[Rerank | TeiRerank]] = {"documents": Rerank, "texts": TeiRerank}
    body = await read_json(request, terms, kinds)
    documents = body.documents if isinstance(body, Rerank) else body.texts
    if not body.query.strip():
        raise InvalidRequest("query: it is empty")
    pairs = [(body.query, document) for document in documents]
    found = await score(gateway, body.model, "reranking", pairs, TextOptions(truncate=body.truncate), terms)
    # text-embeddings-inference has a sigmoid whatever the model says: core/src/infer.rs, predict
    function = None if isinstance(body, Rerank) else "identity" if body.raw_scores else "sigmoid"
    scores = found.by(function)[:, 0]
    most = body.top_n if isinstance(body, Rerank) else None
    has_text = isinstance(body, Rerank) or body.return_text
    ranked = [
        Ranked(index=int(i), score=float(scores[i]), text=documents[i] if has_text else None)
        for i in np.argsort(-scores, kind="stable")[:most]
    ]
    return Reranked(results=ranked, model=found.model) if isinstance(body, Rerank) else ranked


def as_texts(inputs: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]) -> list[Text]:
    """One text or several, as strings or as token ids."""
    if isinstance(inputs, str):
        return [inputs]
    if inputs and isinstance(inputs[0], int):
        return [tuple(id for id in inputs if isinstance(id, int))]
    return [one if isinstance(one, str) else tuple(one) for one in inputs if not isinstance(one, int)]


def shortened(found: Vectors, num_dimensions: int | None) -> np.ndarray:
    """The first dimensions; of length 1 where the whole vectors are.

    Raises:
        InvalidRequest: the model has fewer.
    """
    dim = found.rows.shape[1]
    if num_dimensions is None:
        return found.rows
    if num_dimensions > dim:
        raise InvalidRequest(f"dimensions: {found.model} has {dim}, not {num_dimensions}")
    rows = found.rows[:, :num_dimensions]
    return normalised(rows) if found.is_normalized else rows


def normalised(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; one of nothing but zeros stays."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: np.ndarray = rows / np.where(lengths == 0, 1, lengths)
    return scaled
