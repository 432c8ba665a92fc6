"""What is served, and what each model is."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from serving.errors import RunnerUnavailable
from serving.gateway import Gateway, gateway_of, length_range
from serving.routes.responses import ERRORS
from serving.runners import UNTRAINED_WARNING, ServedModel
from serving.schemas import (
    ListedModel,
    ModelInfo,
    ModelList,
    ModelSummary,
    ServingLimits,
    TensorInfo,
)

router = APIRouter(prefix="/embeddings", tags=["models"])


@router.get("/models", response_model=ModelList)
async def list_models(gateway: Annotated[Gateway, Depends(gateway_of)]) -> ModelList:
    """Every model that is served here."""
    runners = await asyncio.gather(*(_status(served) for served in gateway.models.proteins.values()))
    listed = {
        name: ListedModel(
            **summarise(served, runner.get("precision")).model_dump(),
            status="available" if runner else "unavailable",
        )
        for (name, served), runner in zip(gateway.models.proteins.items(), runners, strict=True)
    }
    s = gateway.settings
    limits = ServingLimits(
        min_sequence_length=s.min_sequence_length,
        max_sequence_length=s.max_sequence_length,
        max_sequences_per_request=s.max_sequences_per_request,
        download_ttl_minutes=s.download_ttl_minutes,
    )
    return ModelList(available_models=listed, config=limits)


@router.get("/model/info", response_model=ModelInfo, responses={404: ERRORS[404]})
async def model_info(
    gateway: Annotated[Gateway, Depends(gateway_of)],
    model: Annotated[str | None, Query(description="default: the first served", examples=["esm2_mini"])] = None,
) -> ModelInfo:
    """Everything about one model: weights, limits, arithmetic, tensors."""
    served = gateway.models.find(model or gateway.models.default_protein)
    row, runner = served.model, await _status(served)
    return ModelInfo(
        **summarise(served, runner.get("precision")).model_dump(),
        model_type=row.name,
        family=row.family,
        num_layers=row.num_layers,
        source=str(served.metadata["source"]),
        revision=str(served.metadata["revision"]),
        digest=str(served.metadata["digest"]),
        sequence_length_range=length_range(gateway.settings),
        replaced_residues=dict(row.replaced_residues),
        precision_reason=runner.get("precision_reason"),
        backend=runner.get("backend"),
        trained_length=row.trained_length,
        devices=runner.get("devices", []),
        per_device=runner.get("per_device", []),
        batcher=runner.get("batcher", {}),
        inputs=[
            TensorInfo(name="input_ids", datatype="INT64", shape=[-1]),
            TensorInfo(name="cu_seqlens", datatype="INT32", shape=[-1]),
        ],
        outputs=[TensorInfo(name="hidden_states", datatype="FP32", shape=[-1, row.dim])],
    )


def summarise(served: ServedModel, precision: str | None) -> ModelSummary:
    """What every description of a model says, with the warning where its weights are untrained."""
    return ModelSummary(
        runner=served.model.runner,
        embedding_dim=served.model.dim,
        description=served.description,
        precision=precision,
        tag=served.tag,
        trained=served.is_trained,
        warning=None if served.is_trained else UNTRAINED_WARNING,
    )


async def _status(served: ServedModel) -> dict[str, Any]:
    """What the runner says of itself; nothing if it does not answer."""
    try:
        return await served.status()
    except RunnerUnavailable:
        return {}
