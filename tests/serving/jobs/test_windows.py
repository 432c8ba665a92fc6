"""How much a window of a job holds, by how long the last ones took."""

from __future__ import annotations

from serving.jobs.windows import WINDOW_S, WINDOW_TOKENS, Pace

LEAST, MOST = WINDOW_TOKENS


def pace_of(tokens_per_s: int, num_windows: int, gap_s: float) -> list[int]:
    """What windows cost on a device of this speed that computes two of them at a time, interleaved: both are begun
    together, and the second is done so long after the first."""
    pace, now, found = Pace(now=100.0), 100.0, []
    for _ in range(num_windows // 2):
        costs = [pace.window_tokens, pace.window_tokens]
        now += sum(costs) / tokens_per_s - gap_s
        for cost in costs:
            pace.note(cost, now)
            now += gap_s
        now -= gap_s
        found += costs
    return found


def test_a_window_takes_a_while_however_quick_the_device_is() -> None:
    for tokens_per_s in (20_000, 100_000, 400_000):
        for gap_s in (0.001, 0.01, 0.1):
            last = pace_of(tokens_per_s, 40, gap_s)[-10:]
            assert all(0.8 <= cost / tokens_per_s / WINDOW_S <= 1.25 for cost in last), (tokens_per_s, gap_s)


def test_a_window_costs_no_less_and_no_more_than_the_bounds() -> None:
    assert set(pace_of(1_000, 20, 0.01)) == {LEAST}
    found = pace_of(10**9, 40, 1e-6)
    assert (found[0], max(found), found[-1]) == (LEAST, MOST, MOST)


def test_a_window_costs_twice_as_much_as_the_last_at_most() -> None:
    """What was in the cache says nothing of what is not."""
    pace = Pace(now=0.0)
    for number in range(1, 4):
        pace.note(pace.window_tokens, now=number * 1e-9)
        assert pace.window_tokens == LEAST * 2**number


def test_windows_that_cost_nothing_or_take_no_time_do_no_harm() -> None:
    pace = Pace(now=0.0)
    pace.note(0, now=0.0)
    pace.note(0, now=1.0)
    pace.note(LEAST, now=1.0)
    assert LEAST <= pace.window_tokens <= 4 * LEAST
