"""The models that are served, found by their names."""

from __future__ import annotations

import pytest

from models.catalogue import UnknownModel, find_served
from serving.errors import NoSuchModel
from serving.lineup import Lineup
from serving.runners import ServedModel
from tests.serving.conftest import CountingRunner


def test_models_are_found_by_their_exact_names(served: ServedModel) -> None:
    lineup = Lineup({"esm2_mini": served})
    assert lineup.find("esm2_mini") is served
    assert lineup.default_protein == lineup.default_embedder == "esm2_mini"
    for name in ("esm2_min", "ESM2_MINI", "prot_t5"):
        with pytest.raises(UnknownModel):
            lineup.find(name)


def test_versions_side_by_side_are_found_by_name_and_version() -> None:
    """The first is the model; both can be asked for by their versions."""
    first, second = (
        ServedModel(find_served(name), version, {}, CountingRunner())
        for name, version in (("esm2_mini", "v1"), ("esm2_mini:v2", "v2"))
    )
    lineup = Lineup({served.model.name: served for served in (first, second)})
    for find in (lineup.find, lineup.find_any):
        assert [find(name) for name in ("esm2_mini", "esm2_mini:v1", "esm2_mini:v2")] == [first, first, second]
        for name in ("esm2_mini:v3", "esm2_mini:", ":v1"):
            with pytest.raises(UnknownModel):
                find(name)
    assert lineup.default_protein == "esm2_mini"


def test_without_protein_models_there_is_none_by_default() -> None:
    lineup = Lineup({})
    assert lineup.default_embedder is None
    with pytest.raises(NoSuchModel, match="no protein model is served here"):
        _ = lineup.default_protein
    with pytest.raises(NoSuchModel, match="no model for reranking is served here"):
        lineup.default_text("reranking")
