"""The simulation of bulk runs, by sums that one can make in one's head."""

from __future__ import annotations

import pytest

from scripts.scaling import bulk
from scripts.scaling.rates import mean_length


def test_one_actor_that_never_dies_takes_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "MEAN_LIFE_S", 1e12)
    run = bulk.simulate(100_000, 1000.0, num_actors=1)
    computed_h = 100_000 * mean_length() / 1000 / 3600
    assert run.num_deaths == 0
    assert run.actor_hours == pytest.approx(computed_h, rel=0.05)
    assert run.hours == pytest.approx(computed_h + bulk.START_S * 2 / 3600, rel=0.05)


def test_more_actors_take_less_time_for_as_many_hours_of_theirs() -> None:
    one, eight = (bulk.simulate(1_000_000, 10_000.0, number) for number in (1, 8))
    assert eight.hours < one.hours / 6
    assert eight.actor_hours == pytest.approx(one.actor_hours, rel=0.1)


def test_deaths_cost_what_was_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    calm = bulk.simulate(1_000_000, 1000.0, 8)
    monkeypatch.setattr(bulk, "MEAN_LIFE_S", 2 * 3600.0)
    rough = bulk.simulate(1_000_000, 1000.0, 8)
    assert rough.num_deaths > calm.num_deaths
    assert rough.busy < calm.busy
