"""How sequences are cut into windows and calls, and windows joined again."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.planning import cost
from serving import parts
from serving.parts import CALL_BYTES, CALL_TOKENS, Call, Joiner, Options, Part, cut, plan_calls

LENGTHS = st.integers(1, 20_000)
WINDOWS = st.integers(1, 6_000)
FORMS = [(True, "float16"), (True, "float32"), (False, "float16"), (False, "float32")]


def planned(lengths: dict[int, int], dim: int, options: Options) -> list[Call]:
    return list(plan_calls(lengths, dim, options))


@given(LENGTHS, WINDOWS)
def test_windows_cover_every_residue_and_are_of_equal_size(length: int, window: int) -> None:
    spans = cut(length, window)
    covered = np.zeros(length, bool)
    for span in spans:
        covered[span] = True
        assert span.stop - span.start == min(length, window)
    assert covered.all()
    assert (spans[0].start, spans[-1].stop) == (0, length)


@given(LENGTHS, WINDOWS)
def test_neighbours_share_a_quarter_of_a_window_and_starts_are_spread_evenly(length: int, window: int) -> None:
    spans = cut(length, window)
    gaps = [right.start - left.start for left, right in pairwise(spans)]
    assert all(window - gap >= window // 4 for gap in gaps)
    assert max(gaps, default=0) - min(gaps, default=0) <= 1
    assert 0 not in gaps


@given(LENGTHS, WINDOWS)
def test_there_are_no_more_windows_than_that_takes(length: int, window: int) -> None:
    num_fewer = len(cut(length, window)) - 1
    stride = window - window // 4
    assert num_fewer == 0 or window + (num_fewer - 1) * stride < length


@pytest.mark.parametrize(
    ("length", "window", "expected"),
    [
        (10, None, [(0, 10)]),
        (10, 10, [(0, 10)]),
        (11, 10, [(0, 10), (1, 11)]),
        (10, 4, [(0, 4), (3, 7), (6, 10)]),
        (18, 10, [(0, 10), (8, 18)]),
        (19, 10, [(0, 10), (4, 14), (9, 19)]),
    ],
)
def test_spans_by_hand(length: int, window: int | None, expected: list[tuple[int, int]]) -> None:
    assert [(span.start, span.stop) for span in cut(length, window)] == expected


@given(
    lengths=st.lists(st.integers(1, 6000), max_size=20),
    dim=st.sampled_from([144, 1280, 5120]),
    form=st.sampled_from(FORMS),
    window=st.none() | st.integers(100, 6000),
)
def test_calls_hold_every_part_once_and_keep_to_their_limits(
    lengths: list[int], dim: int, form: tuple[bool, parts.Dtype], window: int | None
) -> None:
    options = Options(*form, window)
    places = {10 * number: length for number, length in enumerate(lengths)}
    calls = planned(places, dim, options)

    spans = {place: cut(length, window) for place, length in places.items()}
    expected = [(place, span.start, span.stop) for place, found in spans.items() for span in found]
    taken = [(part.place, part.span.start, part.span.stop) for call in calls for part in call.parts]
    assert sorted(taken) == sorted(expected)
    for call in calls:
        (is_whole,) = {part.is_whole for part in call.parts}
        assert all(is_whole == (len(spans[part.place]) == 1) for part in call.parts)
        assert (call.pooled, call.dtype) == (form if is_whole else (False, "float32"))
        assert len(call.parts) == 1 or fits(call, dim)
    for one, other in pairwise(calls):
        if one.parts[0].is_whole == other.parts[0].is_whole:
            assert not fits(Call([*one.parts, other.parts[0]], one.pooled, one.dtype), dim), "a call is filled up"


def fits(call: Call, dim: int) -> bool:
    """Whether a call keeps to both limits, its rows counted as their cost."""
    tokens = sum(cost(part.span.stop - part.span.start, dim) for part in call.parts)
    row_bytes = dim * np.dtype(call.dtype).itemsize
    return tokens <= CALL_TOKENS and (call.pooled or tokens <= CALL_BYTES // row_bytes)


def test_calls_by_hand() -> None:
    # At this width 100 residues cost 100 tokens. 32 MB hold 1,562 rows of 5120 numbers of float32
    lengths = dict.fromkeys(range(200), 100)
    assert [len(call.parts) for call in planned(lengths, 5120, Options())] == [163, 37]
    full = planned(lengths, 5120, Options(pooled=False, dtype="float32"))
    assert [len(call.parts) for call in full] == [15] * 13 + [5]
    half = planned(lengths, 5120, Options(pooled=False, dtype="float16"))
    assert [len(call.parts) for call in half] == [31] * 6 + [14]


def test_a_sequence_above_every_limit_is_a_call_of_its_own() -> None:
    calls = planned({0: 100, 1: 50_000, 2: 100}, 144, Options())
    assert [[part.place for part in call.parts] for call in calls] == [[0], [1], [2]]


def test_nothing_to_compute_is_no_call() -> None:
    assert planned({}, 144, Options(window=10)) == []


def windows_of(place: int, length: int, window: int, dim: int = 2) -> list[tuple[Part, np.ndarray]]:
    """Each window of a sequence with an embedding whose row i is full of i."""
    rows = np.repeat(np.arange(window, dtype=np.float32)[:, None], dim, axis=1)
    return [(Part(place, span, is_whole=False), rows) for span in cut(length, window)]


# Windows of 4 start at residues 0, 3 and 6 of 10; residues 3 and 6 are the last row of one, the first of another
JOINED = [0, 1, 2, 1.5, 1, 2, 1.5, 1, 2, 3]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_where_windows_overlap_the_mean_is_taken_in_whatever_order_they_come(order: tuple[int, ...]) -> None:
    joiner = Joiner(2, Options(pooled=False, dtype="float32", window=4))
    windows = windows_of(0, 10, 4)
    *early, last = [joiner.add(*windows[number], length=10) for number in order]
    assert early == [None, None]
    assert last is not None
    assert last.shape == (10, 2)
    assert last.dtype == np.float32
    assert last[:, 0].tolist() == last[:, 1].tolist() == JOINED


def test_pooled_is_the_mean_of_the_joined_residues_not_of_the_windows() -> None:
    joiner = Joiner(2, Options(pooled=True, dtype="float16", window=4))
    first, second = windows_of(0, 5, 4)
    assert joiner.add(*first, length=5) is None
    rows = second[1].copy()
    rows[-1] = 13
    embedding = joiner.add(second[0], rows, length=5)
    assert embedding is not None
    assert embedding.shape == (2,)
    assert embedding.dtype == np.float16
    assert embedding.tolist() == [3.5, 3.5]  # of 0, 0.5, 1.5, 2.5, 13; that of the eight rows would be 2.75


def test_windows_of_several_sequences_may_come_mixed() -> None:
    joiner = Joiner(2, Options(pooled=False, dtype="float32", window=4))
    ten, five = windows_of(0, 10, 4), windows_of(7, 5, 4)
    assert joiner.add(*five[1], length=5) is None
    assert joiner.add(*ten[2], length=10) is None
    assert joiner.add(*ten[0], length=10) is None
    done = joiner.add(*five[0], length=5)
    assert done is not None
    assert done[:, 0].tolist() == [0, 0.5, 1.5, 2.5, 3]
    done = joiner.add(*ten[1], length=10)
    assert done is not None
    assert done[:, 0].tolist() == JOINED


@pytest.mark.parametrize("pooled", [True, False])
def test_what_does_not_fit_the_dtype_is_an_error_and_leaves_nothing_behind(pooled: bool) -> None:
    joiner = Joiner(2, Options(pooled, "float16", window=4))
    first, second = windows_of(0, 5, 4)
    assert joiner.add(first[0], first[1] + 70_000, length=5) is None
    with pytest.raises(OverflowError, match="does not fit float16; ask for float32"):
        joiner.add(second[0], second[1] + 70_000, length=5)
    assert joiner.add(*first, length=5) is None
    assert joiner.add(*second, length=5) is not None, "the next sequence of this place starts anew"


def test_sums_may_be_larger_than_what_fits() -> None:
    joiner = Joiner(2, Options(False, "float16", window=4))
    first, second = windows_of(0, 5, 4)
    assert joiner.add(first[0], first[1] + 60_000, length=5) is None
    done = joiner.add(second[0], second[1] + 60_000, length=5)
    assert done is not None
    assert np.isfinite(done).all()
