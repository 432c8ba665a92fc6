"""The examples that the documentation pages show."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from serving import dialect_examples, dialects, schemas
from serving.jobs import schemas as job_schemas

SHOWN = [
    model
    for model in (vars(schemas) | vars(job_schemas)).values()
    if isinstance(model, type) and issubclass(model, BaseModel) and "json_schema_extra" in model.model_config
]


@pytest.mark.parametrize("model", SHOWN, ids=lambda model: str(model.__name__))
def test_an_example_is_what_its_schema_says(model: type[BaseModel]) -> None:
    extra = model.model_config["json_schema_extra"]
    assert isinstance(extra, dict)
    example = extra["example"]
    assert isinstance(example, dict)
    model.model_validate_json(json.dumps(example), strict=True)
    assert set(example) == set(model.model_fields), "an example shows every field"


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (dialects.ProteinPredicted, dialect_examples.PREDICTED),
        (dialects.ProteinBatchPredicted, dialect_examples.PREDICTED_BATCH),
        (dialects.InputEmbedded, dialect_examples.EMBEDDED),
        (dialects.Reranked, dialect_examples.RERANKED),
        (dialects.OpenAIEmbedded, dialect_examples.OPENAI_EMBEDDED),
        (dialects.OpenAIModels, dialect_examples.OPENAI_MODELS),
        (dialects.ServerInfo, dialect_examples.SERVER_INFO),
        (dialects.ServiceHealth, dialect_examples.OVERALL_HEALTH),
    ],
    ids=lambda one: str(getattr(one, "__name__", "")),
)
def test_an_example_of_another_services_reply_is_what_its_type_says(
    model: type[BaseModel], example: dict[str, Any]
) -> None:
    model.model_validate_json(json.dumps(example), strict=True)
    assert set(example) == set(model.model_fields)
