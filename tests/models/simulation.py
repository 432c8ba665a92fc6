"""The batcher in simulated time: nothing takes any but a device, and a run of minutes is over at once."""

from __future__ import annotations

import asyncio
import functools
import math
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec

from models.batcher import Batcher, Limits
from models.failures import DeviceLost, OutOfMemory
from models.schedule import Priority
from tests.models.devices import Numbers, settle

P = ParamSpec("P")
Answer = asyncio.Task[list[int | Exception]]
Trouble = Callable[[Sequence[int]], None]


class _Selector(selectors.SelectSelector):
    """Where an event loop would wait, the clock jumps instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.before_jump: Callable[[], None] = lambda: None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout != 0:
            self.before_jump()
            assert timeout is not None, "everyone waits for ever"
            self.now = max(self.now + timeout, math.nextafter(self.now, math.inf))
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still while anyone can go on, then jumps to the next timer.

    A call to a thread is no such thing either: a `Worker` is asked how long it takes, and is called then.
    """

    def __init__(self) -> None:
        self._simulated = _Selector()
        super().__init__(self._simulated)
        self.set_exception_handler(lambda _, context: self.errors.append(context))
        self.errors: list[dict[str, Any]] = []  # of callbacks, and of tasks that nobody awaited

    def time(self) -> float:
        return self._simulated.now

    def before_jump(self, check: Callable[[], None]) -> None:
        """`check` is called whenever all have come as far as they can at one time."""
        self._simulated.before_jump = check

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Worker, items: Sequence[int]
    ) -> asyncio.Future[list[int | Exception]]:
        done: asyncio.Future[list[int | Exception]] = self.create_future()

        def call() -> None:
            try:
                done.set_result(func(items))
            except Exception as error:
                done.set_exception(error)

        self.call_later(func.begin(items), call)
        return done


def simulate(scenario: Coroutine[Any, Any, None]) -> None:
    """Runs it to its end. It fails, and never hangs, if everyone waits for ever."""
    loop = SimulatedLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(scenario)
    assert loop.errors == []


def simulated(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test that runs in simulated time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        simulate(test(*args, **kwargs))

    return run


def now() -> float:
    return asyncio.get_running_loop().time()


async def until(time: float) -> None:
    await asyncio.sleep(time - now())


@dataclass
class Batch:
    """What a worker was given, from when to when, and what it raised. is_share: on a share of the worker."""

    items: list[int]
    began: float
    is_share: bool
    ended: float = math.inf
    error: Exception | None = None

    @property
    def is_good(self) -> bool:
        return self.ended < math.inf and self.error is None


class Worker:
    """A device that doubles numbers, as many a second as `rate` says: at 1, the batch [3, 4] takes 7 s.

    each_s: that every batch takes besides. trouble: called with each batch at its end; raises what the device
    raises.
    """

    def __init__(self, rate: float = 1.0, trouble: Trouble = lambda _: None, each_s: float = 0.0) -> None:
        self.rate = rate
        self.each_s = each_s
        self.trouble = trouble
        self.history: list[Batch] = []
        self.is_share = False

    def share(self, num_shares: int) -> Worker:
        """The worker with a part of its rate; the history is one."""
        share = Worker(self.rate / num_shares, self.trouble, self.each_s)
        share.history, share.is_share = self.history, True
        return share

    @property
    def batches(self) -> list[list[int]]:
        """The items of every batch so far, the one that runs included."""
        return [batch.items for batch in self.history]

    def begin(self, items: Sequence[int]) -> float:
        self.history.append(Batch(list(items), now(), self.is_share))
        return self.each_s + sum(items) / self.rate

    def __call__(self, items: Sequence[int]) -> list[int | Exception]:
        batch = next(batch for batch in self.history if batch.ended == math.inf and batch.items == list(items))
        batch.ended = now()
        try:
            self.trouble(items)
        except Exception as error:
            batch.error = error
            raise
        return [2 * item for item in items]


def memory_for(most: int) -> Trouble:
    def check(items: Sequence[int]) -> None:
        if sum(items) > most:
            raise OutOfMemory(f"{sum(items)} is more than {most}")

    return check


def lost_with(*items: int) -> Trouble:
    """The device is lost as soon as one of the items is on it."""

    def check(batch: Sequence[int]) -> None:
        if set(batch) & set(items):
            raise DeviceLost(f"on {list(batch)}")

    return check


def lost(items: Sequence[int]) -> None:
    raise DeviceLost(f"on {list(items)}")


async def ask(
    batcher: Numbers,
    *items: int,
    priority: Priority = "interactive",
    timeout_s: float | None = None,
    is_admitted: bool = False,
) -> list[int | Exception]:
    """What `run` gives, without the devices."""
    return [outcome.result for outcome in await batcher.run(items, priority, timeout_s, is_admitted)]


async def asked(batcher: Numbers, *items: int, **options: Any) -> Answer:
    """The same, under way: everyone has come as far as they can at this time."""
    answer = asyncio.create_task(ask(batcher, *items, **options))
    await settle()
    return answer


@asynccontextmanager
async def working(
    *workers: Worker,
    budget: int = 10,
    num_callers: int = 1,
    lingers: Callable[[int], bool] = lambda _: False,
    on_last_loss: Callable[[], None] = lambda: None,
    divides: bool = False,
    **limits: Any,
) -> AsyncIterator[Numbers]:
    """A batcher on the workers. limits: further fields of `Limits`."""
    batcher: Numbers = Batcher(
        workers,
        lambda item: item,
        Limits(budget, **limits),
        lingers,
        num_callers,
        on_last_loss,
        shares=[worker.share(num_callers) for worker in workers] if divides else None,
    )
    yield batcher
    await batcher.close()
