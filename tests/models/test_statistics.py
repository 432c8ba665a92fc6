"""When a batch is late."""

from __future__ import annotations

import pytest

from models.statistics import HANGS_AFTER_S, HANGS_AFTER_TIMES, UNKNOWN_S, Pace


def test_a_batch_is_late_behind_several_times_what_it_should_take() -> None:
    pace = Pace()
    ticket = pace.expect(cost=1000, now=50.0, cost_per_s=500.0)
    due = 50.0 + HANGS_AFTER_S + HANGS_AFTER_TIMES * 2
    assert pace.overdue_s(due - 1) == 0
    assert pace.overdue_s(due + 3) == pytest.approx(3)
    pace.forget(ticket)
    assert pace.overdue_s(due + 3) == 0


def test_a_device_that_has_done_nothing_yet_may_be_compiling() -> None:
    pace = Pace()
    pace.expect(cost=1, now=0.0, cost_per_s=0.0)
    assert pace.overdue_s(UNKNOWN_S - 1) == 0
    assert pace.overdue_s(UNKNOWN_S + 1) == pytest.approx(1)


def test_the_latest_of_several_batches_counts() -> None:
    pace = Pace()
    late = pace.expect(cost=1, now=0.0, cost_per_s=0.0)
    pace.expect(cost=1, now=30.0, cost_per_s=0.0)
    assert pace.overdue_s(UNKNOWN_S + 10) == pytest.approx(10)
    pace.forget(late)
    assert pace.overdue_s(UNKNOWN_S + 10) == 0
