"""The queue against a list that is searched from end to end."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, consumes, invariant, multiple, rule

from models.schedule import Entry, Schedule


def filled(*entries: tuple[str, int, float]) -> tuple[Schedule[str], list[Entry[str]]]:
    """A schedule of (item, cost, due), and its entries."""
    schedule: Schedule[str] = Schedule()
    made = [Entry(item, cost, 0.0, due) for item, cost, due in entries]
    for entry in made:
        schedule.put(entry)
    return schedule, made


def picked(schedule: Schedule[str], budget: int = 100, max_items: int = 100) -> str:
    return "".join(entry.item for entry in schedule.pick(budget, max_items))


def test_what_is_due_first_goes_first() -> None:
    schedule, _ = filled(("a", 1, 3), ("b", 1, 1), ("c", 1, 2))
    assert picked(schedule) == "bca"


def test_what_is_due_together_goes_as_it_came() -> None:
    schedule, _ = filled(*((letter, 1, 5.0) for letter in "ghijabcdef"))
    assert picked(schedule) == "ghijabcdef"


def test_what_nobody_waits_for_until_then_is_passed_over_and_keeps_its_turn() -> None:
    schedule, (first, second, _) = filled(("a", 3, 1), ("b", 4, 2), ("c", 5, 3))
    first.deadline, second.deadline = 9, 10
    assert [entry.item for entry in schedule.pick(8, 100, ends_at=10)] == ["b"]
    assert (schedule.size, schedule.cost) == (2, 8)
    assert picked(schedule, budget=7) == "a"
    schedule.put(first)
    assert [entry.item for entry in schedule.pick(8, 100, ends_at=10)] == ["c"]
    assert [entry.item for entry in schedule.pick(8, 100, ends_at=10)] == ["a"], "nothing else waits"
    assert schedule.pick(8, 100, ends_at=10) == []


def test_whoever_joins_may_wait_for_longer() -> None:
    schedule, (first, _) = filled(("a", 3, 1), ("b", 4, 2))
    first.deadline = 9
    schedule.join(first, due=5, deadline=8)
    assert first.deadline == 9
    schedule.join(first, due=5, deadline=10)
    assert [entry.item for entry in schedule.pick(3, 100, ends_at=10)] == ["a"]


def test_what_goes_before_a_time_is_what_is_due_until_then() -> None:
    schedule, (first, *_) = filled(("a", 3, 1), ("b", 4, 2), ("c", 5, 3))
    assert [schedule.cost_before(due) for due in (0.5, 1, 2.5, 3)] == [0, 3, 7, 12]
    schedule.leave(first)
    assert schedule.cost_before(3) == 9


def test_a_batch_holds_what_the_budget_does_and_skips_nothing() -> None:
    schedule, _ = filled(("a", 3, 1), ("b", 4, 2), ("c", 4, 3), ("d", 1, 4))
    assert picked(schedule, budget=7) == "ab"
    assert (schedule.size, schedule.cost) == (2, 5)
    assert picked(schedule, budget=4) == "c"
    assert picked(schedule, budget=4) == "d"
    assert picked(schedule, budget=4) == ""


def test_what_is_dearer_than_the_budget_goes_alone() -> None:
    schedule, _ = filled(("a", 9, 1), ("b", 1, 2))
    assert picked(schedule, budget=2) == "a"


def test_a_batch_has_so_many_items_at_most() -> None:
    schedule, _ = filled(("a", 1, 1), ("b", 1, 2), ("c", 1, 3))
    assert [picked(schedule, max_items=2), picked(schedule, max_items=2)] == ["ab", "c"]


def bulk(*entries: tuple[str, int, float]) -> list[Entry[str]]:
    return [Entry(item, cost, 0.0, due, is_bulk=True) for item, cost, due in entries]


def test_bulk_work_joins_what_is_waited_for_up_to_half_a_batch() -> None:
    schedule, _ = filled(("a", 10, 1))
    for entry in bulk(*((letter, 20, 11.0) for letter in "bcdefg")):
        schedule.put(entry)
    assert picked(schedule, budget=100) == "abc"
    assert picked(schedule, budget=100) == "defg"  # among its like it fills the batch
    schedule, _ = filled(("a", 60, 1), ("z", 30, 12))
    for entry in bulk(("b", 20, 11)):
        schedule.put(entry)
    assert picked(schedule, budget=100) == "a"  # in order: what is behind does not overtake
    assert picked(schedule, budget=100) == "bz"  # what is waited for joins bulk work as far as there is room


def test_bulk_work_that_is_held_back_has_half_a_batch() -> None:
    schedule = Schedule[str]()
    for entry in bulk(*((letter, 20, 11.0) for letter in "abcdef"), ("g", 80, 12)):
        schedule.put(entry)
    assert "".join(entry.item for entry in schedule.pick(100, 100, holds_bulk_back=True)) == "ab"
    assert picked(schedule) == "cdef"
    assert [entry.item for entry in schedule.pick(100, 100, holds_bulk_back=True)] == ["g"]  # one at least


def test_bulk_work_that_somebody_waits_for_is_none() -> None:
    schedule, _ = filled(("a", 10, 1))
    (entry,) = bulk(("b", 80, 11))
    schedule.put(entry)
    schedule.join(entry, due=2.0)
    assert picked(schedule, budget=100) == "ab"


def test_an_entry_goes_when_the_most_urgent_of_its_callers_wants() -> None:
    schedule, (_, b, c) = filled(("a", 1, 2), ("b", 1, 3), ("c", 1, 4))
    schedule.join(c, 1)
    schedule.join(b, 9)
    assert (schedule.size, schedule.cost) == (3, 3)
    assert picked(schedule) == "cab"


def test_an_entry_leaves_with_the_last_of_its_callers() -> None:
    schedule, (a, _) = filled(("a", 2, 1), ("b", 3, 2))
    schedule.join(a, 1)
    assert not schedule.leave(a)
    assert (schedule.size, schedule.cost) == (2, 5)
    assert schedule.leave(a)
    assert (schedule.size, schedule.cost) == (1, 3)
    assert schedule.first() is not a
    assert picked(schedule) == "b"


def test_who_stays_goes_in_order_when_most_have_left() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    shuffled = [letters[7 * number % 26] for number in range(26)]
    schedule, entries = filled(*((letter, 1, letters.index(letter)) for letter in shuffled))
    for entry in entries:
        if entry.item not in "bdjkqxyz":
            assert schedule.leave(entry)
    assert picked(schedule) == "bdjkqxyz"


def test_what_a_device_holds_does_not_leave() -> None:
    schedule, (a,) = filled(("a", 2, 1))
    picked(schedule)
    assert not schedule.leave(a)
    assert (schedule.size, schedule.cost) == (0, 0)


def test_what_is_put_back_goes_before_what_is_due_later() -> None:
    schedule, (a, _) = filled(("a", 1, 1), ("b", 1, 2))
    assert picked(schedule, max_items=1) == "a"
    schedule.put(a)
    assert picked(schedule) == "ab"


def test_what_is_put_back_keeps_its_turn_among_what_is_due_together() -> None:
    schedule, (a, _) = filled(("a", 1, 1), ("b", 1, 1))
    assert picked(schedule, max_items=1) == "a"
    schedule.put(a)
    assert picked(schedule) == "ab"


def test_what_an_urgent_caller_joined_on_a_device_is_urgent_when_it_is_put_back() -> None:
    schedule, (a, _) = filled(("a", 1, 10), ("b", 1, 12))
    assert picked(schedule, max_items=1) == "a"
    urgent = Entry("c", 1, 0.0, 5.0)
    schedule.put(urgent)
    schedule.join(a, 4)
    schedule.put(a)
    assert picked(schedule) == "acb"


def test_everything_is_taken_in_order() -> None:
    schedule, _ = filled(("a", 9, 3), ("b", 1, 1), ("c", 7, 2))
    assert [entry.item for entry in schedule.take_all()] == ["b", "c", "a"]
    assert schedule.take_all() == []
    assert schedule.first() is None


class AgainstAList(RuleBasedStateMachine):
    """Entries wait (`self.waiting`, as they came), or are on a device (`self.taken`), or are gone."""

    entries: Bundle[Entry[int]] = Bundle("entries")

    def __init__(self) -> None:
        super().__init__()
        self.schedule: Schedule[int] = Schedule()
        self.waiting: list[Entry[int]] = []
        self.taken: list[Entry[int]] = []
        self.num_callers: dict[int, int] = {}
        self.moved: set[int] = set()  # joined or put back: among what is due together, these may go anywhere

    @rule(target=entries, cost=st.integers(1, 5), due=st.integers(0, 4))
    def put(self, cost: int, due: int) -> Entry[int]:
        entry = Entry(len(self.num_callers), cost, 0.0, due)
        self.schedule.put(entry)
        self.waiting.append(entry)
        self.num_callers[entry.item] = 1
        return entry

    @rule(entry=entries, due=st.integers(0, 4))
    def join(self, entry: Entry[int], due: int) -> None:
        if entry in self.waiting or entry in self.taken:
            earliest = min(due, entry.due)
            self.schedule.join(entry, due)
            self.num_callers[entry.item] += 1
            self.moved.add(entry.item)
            if entry in self.waiting:
                assert entry.due == earliest

    @rule(entry=entries)
    def leave(self, entry: Entry[int]) -> None:
        if self.num_callers[entry.item] and (entry in self.waiting or entry in self.taken):
            self.num_callers[entry.item] -= 1
            was_last = entry in self.waiting and not self.num_callers[entry.item]
            assert self.schedule.leave(entry) == was_last
            if was_last:
                self.waiting.remove(entry)

    @rule(budget=st.integers(1, 12), max_items=st.integers(1, 4))
    def pick(self, budget: int, max_items: int) -> None:
        batch = self.schedule.pick(budget, max_items)
        self.check_order(batch)
        assert len(batch) == 1 or sum(entry.cost for entry in batch) <= budget
        assert len(batch) <= max_items
        follower = self.schedule.first()
        assert (follower is None) == (not self.waiting)
        if follower is not None:  # there was no room for it
            full = len(batch) == max_items
            assert batch
            assert full or sum(entry.cost for entry in [*batch, follower]) > budget

    @rule()
    def take_all(self) -> None:
        self.check_order(self.schedule.take_all())
        assert self.waiting == []

    def check_order(self, batch: list[Entry[int]]) -> None:
        for entry in batch:
            first_due = min(other.due for other in self.waiting)
            assert entry.due == first_due
            if entry.item not in self.moved:
                together = [other for other in self.waiting if other.due == first_due]
                assert entry is next(other for other in together if other.item not in self.moved)
            self.waiting.remove(entry)  # fails if it was handed out before
            self.taken.append(entry)

    @rule(entry=entries)
    def put_back(self, entry: Entry[int]) -> None:
        if entry in self.taken and self.num_callers[entry.item]:
            self.taken.remove(entry)
            self.schedule.put(entry)
            self.waiting.append(entry)
            self.moved.add(entry.item)

    @rule(target=entries, entry=consumes(entries))
    def finish(self, entry: Entry[int]) -> Entry[int] | MultipleResults[Entry[int]]:
        if entry not in self.taken:
            return entry
        self.taken.remove(entry)
        return multiple()

    @invariant()
    def what_waits_is_counted(self) -> None:
        assert self.schedule.size == len(self.waiting)
        assert self.schedule.cost == sum(entry.cost for entry in self.waiting)

    def teardown(self) -> None:
        self.take_all()


TestAgainstAList = AgainstAList.TestCase
TestAgainstAList.settings = settings(max_examples=200, stateful_step_count=40, deadline=None, derandomize=True)
