"""How far a long piece of work is, in words that suit where they are read: a terminal, or a log file."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

# Seconds between two looks at it, at least
BAR_EVERY_S = 0.1
LINE_EVERY_S = 10.0
_FORMAT = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} {unit}{postfix}"


class Progress:
    """On standard error: a bar on a terminal; elsewhere a plain line now and then, none in the first seconds."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._bar: tqdm[Any] | None = None
        self._step: tuple[str, int] | None = None
        self._started, self._first = 0.0, 0
        self._next = 0.0 if self._is_terminal else time.monotonic() + LINE_EVERY_S

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def show(self, state: str, done: int, total: int, unit: str, rate: float | None = None) -> None:
        """What is under way, and how much of it is done.

        Args:
            unit: of `done` and `total`; another unit or total is the next step of the work.
            rate: units a second; where it is not given, it is measured from the step's first call on.
        """
        now = time.monotonic()
        if self._step != (unit, total):
            self.clear()
            self._step, self._started, self._first = (unit, total), now, done
        if now < self._next:
            return
        if rate is None and now > self._started:
            rate = (done - self._first) / (now - self._started)
        pace = ""
        if rate and rate > 0:
            pace = f"{tqdm.format_sizeof(rate)}/s, {tqdm.format_interval(max(0, total - done) / rate)} left"
        if self._is_terminal:
            self._next = now + BAR_EVERY_S
            self._draw(state, done, total, unit, pace)
        else:
            self._next = now + LINE_EVERY_S
            share = f"{done / total:.0%}, " if total else ""
            sizes = f"{tqdm.format_sizeof(done)}/{tqdm.format_sizeof(total)} {unit}"
            self._say(f"{state}: {share}{sizes}{pace and ', '}{pace}")

    def note(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.clear()
        self._say(text)
        if self._bar is not None:
            self._bar.refresh()

    def clear(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _draw(self, state: str, done: int, total: int, unit: str, pace: str) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=total,
                initial=done,
                unit=unit,
                unit_scale=True,
                bar_format=_FORMAT,
                leave=False,
                delay=1e-9,  # it is drawn below, once it has a description
            )
        self._bar.set_description_str(state, refresh=False)
        self._bar.set_postfix_str(pace, refresh=False)
        self._bar.n = done
        self._bar.refresh()

    @staticmethod
    def _say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)
