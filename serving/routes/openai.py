"""OpenAI's embeddings API, for proteins and texts. serving/replies.py gives errors below /v1 its shape."""

from __future__ import annotations

import base64
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Request, Response

from serving import dialect_examples
from serving.bodies import body_schema, read_json
from serving.dialects import (
    OpenAIEmbedded,
    OpenAIEmbedding,
    OpenAIEmbeddings,
    OpenAIModel,
    OpenAIModels,
    OpenAIUsage,
)
from serving.errors import InvalidRequest
from serving.gateway import Gateway, gateway_of
from serving.routes.embed import as_texts, shortened
from serving.routes.responses import ERRORS, REFUSED, as_openai, computed, shown, written
from serving.texts import TextOptions
from serving.vectors import embed

PREFIX = "/v1"
router = APIRouter(prefix=PREFIX, tags=["openai"], responses=as_openai(REFUSED))


@router.post(
    "/embeddings",
    response_model=OpenAIEmbedded,
    responses=computed(dialect_examples.OPENAI_EMBEDDED) | as_openai(ERRORS),
    openapi_extra=body_schema(OpenAIEmbeddings),
)
async def embeddings(request: Request, gateway: Annotated[Gateway, Depends(gateway_of)]) -> Response:
    """Embeddings of strings or of arrays of token ids, which are those of the model's own tokenizer."""
    terms = gateway.terms(request)
    body = await read_json(request, terms, {"input": OpenAIEmbeddings})
    texts = as_texts(body.input)
    if not texts:
        raise InvalidRequest("input: there is none")
    found = await embed(gateway, body.model, texts, TextOptions(), terms)
    rows = shortened(found, body.dimensions)
    is_base64 = body.encoding_format == "base64"
    encoded = [_as_base64(row) if is_base64 else row.tolist() for row in rows]
    data = [OpenAIEmbedding(index=index, embedding=row) for index, row in enumerate(encoded)]
    usage = OpenAIUsage(prompt_tokens=found.num_tokens, total_tokens=found.num_tokens)
    return written(OpenAIEmbedded(data=data, model=found.model, usage=usage))


@router.get("/models", response_model=OpenAIModels, responses=shown(dialect_examples.OPENAI_MODELS))
async def models(gateway: Annotated[Gateway, Depends(gateway_of)]) -> OpenAIModels:
    """Everything that is served."""
    return OpenAIModels(data=[_listed(served.model.name, served.created) for served in gateway.models.all])


@router.get(
    "/models/{model:path}",
    response_model=OpenAIModel,
    responses=shown(dialect_examples.OPENAI_MODEL) | as_openai({404: ERRORS[404]}),
)
async def model(model: str, gateway: Annotated[Gateway, Depends(gateway_of)]) -> OpenAIModel:
    """One of them."""
    served = gateway.models.find_any(model)
    return _listed(served.model.name, served.created)


def _listed(name: str, created: int) -> OpenAIModel:
    return OpenAIModel(id=name, created=created, owned_by="protein-embedding-service")


def _as_base64(row: np.ndarray) -> str:
    """float32, little-endian."""
    return base64.b64encode(row.astype("<f4").tobytes()).decode()
