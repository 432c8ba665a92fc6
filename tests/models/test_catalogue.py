"""The table of models."""

from __future__ import annotations

import pytest

from models.catalogue import CATALOGUE, MINI, UnknownModel, find, find_served

# Number of layers, width, heads. Source: fair-esm README, and the config.json of each repository
PUBLISHED = {
    "esm2_t6_8M": (6, 320, 20),
    "esm2_t12_35M": (12, 480, 20),
    "esm2_t30_150M": (30, 640, 20),
    "esm2_t33_650M": (33, 1280, 20),
    "esm2_t36_3B": (36, 2560, 40),
    "esm2_t48_15B": (48, 5120, 40),
    "prot_t5": (24, 1024, 32),
}


def test_every_published_size_is_in_the_table() -> None:
    sizes = {name: (m.num_layers, m.dim, m.num_heads) for name, m in CATALOGUE.items() if m.source is not None}
    assert sizes == PUBLISHED


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_row_is_found_by_exactly_its_name(name: str) -> None:
    assert find(name).name == name
    with pytest.raises(UnknownModel):
        find(name.upper())


def test_an_unknown_name_is_told_the_near_ones() -> None:
    with pytest.raises(UnknownModel, match="did you mean esm2_t33_650M") as caught:
        find("esm2_t33_650m")
    assert caught.value.near[0] == "esm2_t33_650M"


def test_a_name_like_no_other_is_told_them_all() -> None:
    with pytest.raises(UnknownModel) as caught:
        find("zzz")
    assert caught.value.near == []
    assert all(name in str(caught.value) for name in CATALOGUE)


def test_versions_of_a_model_share_its_row_and_its_place_in_the_store() -> None:
    plain, other = find_served("esm2_t6_8M"), find_served("esm2_t6_8M:a.b-c")
    assert plain == find("esm2_t6_8M")
    assert (other.name, other.base_name, other.store_name) == ("esm2_t6_8M:a.b-c", "esm2_t6_8M", "esm2_t6_8m")
    assert (plain.runner, other.runner) == ("runner_esm2_t6_8M", "runner_esm2_t6_8M_a_b_c")
    assert other.dim == plain.dim


def test_no_two_models_share_a_place_in_the_store() -> None:
    assert len({model.store_name for model in CATALOGUE.values()}) == len(CATALOGUE)


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_alphabet_is_25_letters_and_j_is_none(name: str) -> None:
    assert len(CATALOGUE[name].alphabet) == 25
    assert "J" not in CATALOGUE[name].alphabet


def test_prot_t5_reads_rare_residues_as_x() -> None:
    assert CATALOGUE["prot_t5"].read_as("MUZOBXK") == "MXXXXXK"
    assert MINI.read_as("MUZOBXK") == "MUZOBXK"


@pytest.mark.parametrize("name", [n for n in CATALOGUE if n.startswith("esm2")])
def test_an_esm2_row_is_consistent(name: str) -> None:
    model = CATALOGUE[name]
    assert model.num_heads * model.head_dim == model.dim
    assert model.feed_forward_dim == 4 * model.dim
    assert model.num_specials == (1, 1)


def test_only_the_untrained_models_have_no_source() -> None:
    assert [name for name, model in CATALOGUE.items() if model.source is None] == ["esm2_mini", "prot_t5_mini"]
    assert "UNTRAINED" in MINI.description
