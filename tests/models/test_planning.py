"""Batches by cost: within the budget, in order, nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.planning import cost, plan

COSTS = st.lists(st.integers(1, 60), max_size=40)
BUDGETS = st.integers(1, 100)


@settings(deadline=None, derandomize=True)
@given(COSTS, BUDGETS)
def test_every_item_is_in_one_range_and_order_is_kept(costs: list[int], budget: int) -> None:
    assert [index for batch in plan(costs, budget) for index in batch] == list(range(len(costs)))


@settings(deadline=None, derandomize=True)
@given(COSTS, BUDGETS)
def test_only_a_lone_item_may_exceed_the_budget(costs: list[int], budget: int) -> None:
    for batch in plan(costs, budget):
        assert len(batch) > 0
        assert sum(costs[index] for index in batch) <= budget or len(batch) == 1


@settings(deadline=None, derandomize=True)
@given(COSTS, BUDGETS)
def test_a_range_ends_only_where_the_next_item_would_not_fit(costs: list[int], budget: int) -> None:
    for batch in list(plan(costs, budget))[:-1]:
        assert sum(costs[index] for index in batch) + costs[batch.stop] > budget


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ([], []),
        ([10], [(0, 1)]),
        ([4, 6, 1], [(0, 2), (2, 3)]),
        ([3, 99, 3], [(0, 1), (1, 2), (2, 3)]),
        ([99, 99], [(0, 1), (1, 2)]),
    ],
)
def test_a_budget_of_ten(costs: list[int], expected: list[tuple[int, int]]) -> None:
    assert [(batch.start, batch.stop) for batch in plan(costs, 10)] == expected


def test_attention_costs_as_much_as_the_rest_at_six_times_the_width() -> None:
    assert cost(6 * 320, dim=320) == 2 * 6 * 320


def test_a_short_sequence_costs_its_tokens() -> None:
    assert cost(100, dim=1280) == 101  # and 100 * 100 // 7680
    assert cost(10, dim=1280) == 10


def test_a_long_sequence_costs_more_than_its_halves() -> None:
    assert cost(5000, dim=1280) > 2 * cost(2500, dim=1280)
