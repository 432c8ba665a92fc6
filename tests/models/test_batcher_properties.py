"""Whatever callers and devices do, in simulated time: who is answered, what is computed, and who waits for it."""

from __future__ import annotations

import asyncio
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st

from models.batcher import MAX_LOSSES, Batcher, Limits, Outcome
from models.failures import DeviceLost, NoDevice, OutOfMemory, QueueFull, TooLate
from models.schedule import DELAYS_S, STRETCH, Priority
from tests.models.devices import Numbers
from tests.models.simulation import Batch, SimulatedLoop, Worker, ask, now, simulate, until

DEAREST = 12
Answered = list[Outcome[int]] | BaseException


@dataclass(frozen=True)
class Call:
    """What a caller does, and when. leaves_after_s: when it is cancelled."""

    at: int
    items: tuple[int, ...]
    priority: Priority
    timeout_s: float | None
    leaves_after_s: float | None
    is_admitted: bool


@dataclass(frozen=True)
class Machine:
    """A device. memory: cost of what it holds. lost_at: its how many-th batch it does not survive; None: none."""

    rate: float
    memory: float
    lost_at: int | None


@dataclass(frozen=True)
class Scenario:
    """poison: items with which a device is lost. lingering: items whose results do. divides: devices do."""

    calls: list[Call]
    machines: list[Machine]
    limits: Limits
    num_callers: int
    divides: bool
    poison: frozenset[int]
    lingering: frozenset[int]

    @property
    def has_trouble(self) -> bool:
        return bool(self.poison) or any(m.lost_at is not None or m.memory < math.inf for m in self.machines)


items = st.integers(1, DEAREST)
sets = st.one_of(st.just(frozenset[int]()), st.frozensets(items, max_size=3))
priorities = st.sampled_from(get_args(Priority))
seconds = st.one_of(st.none(), st.integers(1, 30))
calls = st.builds(
    Call,
    at=st.integers(0, 40),
    items=st.lists(items, max_size=8).map(tuple),
    priority=priorities,
    timeout_s=seconds,
    leaves_after_s=seconds,
    is_admitted=st.integers(0, 3).map(lambda number: number == 3),
)
machines = st.builds(
    Machine,
    rate=st.sampled_from([0.5, 1.0, 4.0]),
    memory=st.one_of(st.just(math.inf), st.integers(0, 20)),
    lost_at=st.one_of(st.none(), st.none(), st.integers(1, 5)),
)
limits = st.builds(
    Limits,
    budget=st.integers(1, 30),
    max_items=st.sampled_from([sys.maxsize, 1, 3]),
    max_wait_s=st.sampled_from([0.0, 0.0, 3.0]),
    max_queue_cost=st.sampled_from([math.inf, 20.0, 60.0]),
    linger_s=st.just(2.0),
)
scenarios = st.builds(
    Scenario,
    calls=st.lists(calls, min_size=1, max_size=12),
    machines=st.lists(machines, min_size=1, max_size=3),
    limits=limits,
    num_callers=st.integers(1, 2),
    divides=st.booleans(),
    poison=sets,
    lingering=sets,
)


def worker_of(machine: Machine, poison: frozenset[int]) -> Worker:
    is_lost = False

    def trouble(batch: Sequence[int]) -> None:
        nonlocal is_lost
        num_batches = sum(batch.ended < math.inf for batch in worker.history)
        is_lost = is_lost or num_batches == machine.lost_at or bool(poison & set(batch))
        if is_lost:
            raise DeviceLost("lost")
        if sum(batch) > machine.memory:
            raise OutOfMemory("short")

    worker = Worker(machine.rate, trouble)
    return worker


def has_all_of(worker: Worker) -> bool:
    return any(batch.ended == math.inf and not batch.is_share for batch in worker.history)


def lost_batches(worker: Worker) -> list[Batch]:
    return [batch for batch in worker.history if isinstance(batch.error, DeviceLost)]


@dataclass
class Asked:
    """A call that was made, when, and what became of it.

    met_queue, met_full_queue, met_no_device: as it came.
    """

    call: Call
    at: float
    met_queue: bool
    met_full_queue: bool
    met_no_device: bool
    answer: Answered | None = None
    answered_at: float = math.inf


@dataclass
class Play:
    """A scenario as it goes, and the checks of it."""

    scenario: Scenario
    asked: list[Asked] = field(default_factory=list)
    last_losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.workers = [worker_of(machine, self.scenario.poison) for machine in self.scenario.machines]
        self.batcher: Numbers = Batcher(
            self.workers,
            lambda item: item,
            self.scenario.limits,
            lambda item: item in self.scenario.lingering,
            self.scenario.num_callers,
            lambda: self.last_losses.append(now()),
            shares=[w.share(self.scenario.num_callers) for w in self.workers] if self.scenario.divides else None,
        )

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        loop.before_jump(self.check_now)
        await asyncio.gather(*(self.ask(call) for call in self.scenario.calls))
        everything = tuple(range(1, DEAREST + 1))  # nothing that went before is in the way of a later caller
        await self.ask(Call(200, everything, "bulk", None, None, True))
        self.check_afterwards()
        await self.batcher.close()

    async def ask(self, call: Call) -> None:
        await until(call.at)
        caller = asyncio.create_task(self.run_batcher(call))
        if call.leaves_after_s is not None:
            asyncio.get_running_loop().call_later(call.leaves_after_s, caller.cancel)
        await asyncio.wait([caller])

    async def run_batcher(self, call: Call) -> None:
        before = self.batcher.statistics
        was_full = before.queue_cost >= self.scenario.limits.max_queue_cost
        is_refused = was_full and bool(call.items) and not call.is_admitted
        asked = Asked(
            call, now(), before.queue_cost > 0, is_refused, all(device.is_lost for device in before.devices)
        )
        self.asked.append(asked)
        try:
            asked.answer = await self.batcher.run(call.items, call.priority, call.timeout_s, call.is_admitted)
        except BaseException as error:
            asked.answer = error
        asked.answered_at = now()

    def check_now(self) -> None:
        """Nobody can go on before the clock does: devices that could work do, and the queue keeps its bound."""
        statistics = self.batcher.statistics
        live = [device for device in statistics.devices if not device.is_lost]
        if statistics.queue_items and not self.scenario.limits.max_wait_s:
            assert live, "who waits is told that no device is left"
            for device, worker in zip(statistics.devices, self.workers, strict=True):
                is_taken = device.inflight_batches == self.scenario.num_callers or has_all_of(worker)
                assert is_taken or device.is_lost or (device.inflight_batches and self.were_short_alone())
        if not self.scenario.has_trouble:  # else what is put back comes on top
            let_in = [asked.call for asked in self.asked]
            largest = max((sum(call.items) for call in let_in if not call.is_admitted), default=0)
            admitted = sum(sum(call.items) for call in let_in if call.is_admitted)
            assert statistics.queue_cost < self.scenario.limits.max_queue_cost + largest + admitted

    def were_short_alone(self) -> set[int]:
        """Items that have a device to themselves when they go again: nothing is begun beside them."""
        tried = [batch for worker in self.workers for batch in worker.history if len(batch.items) == 1]
        return {batch.items[0] for batch in tried if isinstance(batch.error, OutOfMemory)}

    def check_afterwards(self) -> None:
        for asked in self.asked:
            self.check_answer(asked)
        statistics = self.batcher.statistics
        answers = [asked.answer for asked in self.asked]
        assert statistics.num_rejected_calls == sum(isinstance(answer, QueueFull | TooLate) for answer in answers)
        assert statistics.num_expired_calls == sum(isinstance(answer, TimeoutError) for answer in answers)
        assert (statistics.queue_items, statistics.queue_cost) == (0, 0)
        assert len(self.last_losses) == all(device.is_lost for device in statistics.devices)
        for item in range(1, DEAREST + 1):
            self.check_computed(item)
        for worker in self.workers:
            self.check_batches(worker)

    def check_answer(self, asked: Asked) -> None:
        call, answer = asked.call, asked.answer
        waited_s = asked.answered_at - asked.at
        assert waited_s <= min(call.timeout_s or math.inf, call.leaves_after_s or math.inf)
        assert isinstance(answer, QueueFull) == (asked.met_full_queue and not asked.met_no_device)
        if asked.met_no_device:
            assert isinstance(answer, NoDevice)
        match answer:
            case QueueFull(retry_after_s=retry_after_s):
                assert 1 <= retry_after_s <= 60
            case TooLate(retry_after_s=retry_after_s):
                assert asked.met_queue
                assert call.timeout_s is not None
                assert not call.is_admitted
                assert 1 <= retry_after_s <= 60
            case NoDevice():
                assert self.last_losses
                assert asked.answered_at >= self.last_losses[0]
            case TimeoutError():
                assert waited_s == call.timeout_s
            case asyncio.CancelledError():
                assert waited_s == call.leaves_after_s
            case list():
                for item, outcome in zip(call.items, answer, strict=True):
                    self.check_outcome(item, outcome)
            case _:
                raise AssertionError(f"unlooked-for: {answer!r}")

    def check_outcome(self, item: int, outcome: Outcome[int]) -> None:
        assert outcome.device is not None
        worker = self.workers[outcome.device]
        match outcome.result:
            case OutOfMemory():
                assert item > self.scenario.machines[outcome.device].memory
                assert [item] in worker.batches
            case DeviceLost():
                lost = [batch for worker in self.workers for batch in lost_batches(worker) if item in batch.items]
                assert len(lost) >= MAX_LOSSES
            case result:
                assert result == 2 * item
                assert any(batch.is_good and item in batch.items for batch in worker.history)

    def check_computed(self, item: int) -> None:
        """Never on two devices at once; and once it is done, again only for who asked then."""
        batches = sorted(
            (batch for worker in self.workers for batch in worker.history if item in batch.items),
            key=lambda batch: (batch.began, batch.ended),
        )
        assert all(one.ended <= other.began for one, other in itertools.pairwise(batches))
        for one, other in itertools.pairwise(batch for batch in batches if batch.is_good):
            kept_until = one.ended + (self.scenario.limits.linger_s if item in self.scenario.lingering else 0)
            times = [asked.at for asked in self.asked if item in asked.call.items]
            assert any(kept_until <= time <= other.began for time in times)

    def check_batches(self, worker: Worker) -> None:
        limits = self.scenario.limits
        lost_at = min((batch.ended for batch in lost_batches(worker)), default=math.inf)
        for batch in worker.history:
            assert len(set(batch.items)) == len(batch.items) <= limits.max_items
            assert len(batch.items) == 1 or sum(batch.items) <= limits.budget
            assert batch.began <= lost_at
            if batch.is_share:
                share = math.ceil(limits.budget / self.scenario.num_callers)
                assert len(batch.items) == 1 or sum(batch.items) <= share
            elif self.scenario.divides:
                others = [other for other in worker.history if other is not batch]
                assert all(other.ended <= batch.began or batch.ended <= other.began for other in others)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(scenarios)
def test_everyone_is_answered_and_nothing_is_computed_in_vain(scenario: Scenario) -> None:
    async def play() -> None:
        await Play(scenario).run()

    simulate(play())


@dataclass(frozen=True)
class Fair:
    """Calls of distinct items to one device that does 1 a second."""

    calls: list[Call]
    budget: int


@st.composite
def fair(draw: st.DrawFn) -> Fair:
    distinct = draw(st.permutations(range(1, 31)))
    calls: list[Call] = []
    while distinct:
        size = draw(st.integers(1, 8))
        at, priority = draw(st.integers(0, 60)), draw(priorities)
        calls.append(Call(at, tuple(distinct[:size]), priority, None, None, is_admitted=False))
        distinct = distinct[size:]
    return Fair(calls, draw(st.integers(1, 40)))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(fair())
def test_nothing_waits_longer_than_for_what_was_due_before_it(scenario: Fair) -> None:
    """An item is due after `STRETCH` times what its call alone would take, bulk `DELAYS_S` later. At that time a
    batch may run, and what was due before may wait; nothing else can come before it.
    """
    worker = Worker()
    due: dict[int, float] = {}

    async def follow(batcher: Numbers, call: Call, at: float) -> None:
        await until(at)
        for item, ahead in zip(call.items, itertools.accumulate(call.items), strict=True):
            due[item] = at + DELAYS_S[call.priority] + STRETCH * ahead
        await ask(batcher, *call.items, priority=call.priority)

    async def play() -> None:
        batcher: Numbers = Batcher([worker], lambda item: item, Limits(scenario.budget))
        await ask(batcher, 64)  # the rate is known from here on
        start = now()
        await asyncio.gather(*(follow(batcher, call, start + call.at) for call in scenario.calls))
        await batcher.close()

    simulate(play())
    batches = worker.history[1:]
    for batch in batches:
        for item in batch.items:
            runs_then = sum(max(0, other.ended - due[item]) for other in batches if other.began < due[item])
            before = [number for other in batches for number in other.items if other.began >= due[item]]
            assert batch.began <= due[item] + runs_then + sum(
                n for n in before if due[n] <= due[item] and n != item
            )
