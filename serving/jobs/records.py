"""What is known of a job, as Redis keeps it and as people see it."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from serving.jobs.schemas import JobOptions

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled")
_ID = re.compile(r"\d{10}_[0-9a-f]{32}")


def new_id() -> str:
    """An id that nobody can guess, with the time in front, by which what was left behind is known."""
    return f"{int(time.time())}_{secrets.token_hex(16)}"


def is_id(text: str) -> bool:
    """Whether a text has the form of an id."""
    return _ID.fullmatch(text) is not None


def born_at(job_id: str) -> float:
    """When an id was made, in seconds since 1970."""
    return float(job_id.partition("_")[0])


@dataclass(frozen=True)
class Order:
    """What was asked for.

    tag: name:version of the weights that were served then. num_residues: of what can be embedded.
    trace: to which its submission belongs, as W3C's traceparent; "" for none.
    """

    id: str
    owner: str
    model: str
    tag: str
    options: JobOptions
    num_sequences: int
    num_residues: int
    trace: str = ""

    def to_fields(self) -> dict[str, str | int]:
        return {
            "owner": self.owner,
            "model": self.model,
            "tag": self.tag,
            "options": self.options.model_dump_json(),
            "num_sequences": self.num_sequences,
            "num_residues": self.num_residues,
            "trace": self.trace,
        }


@dataclass(frozen=True)
class Progress:
    """How far a job has come for good: what a worker that takes it over goes on from.

    next: sequences that are done with, failed ones included. offset: of the next one in the job's input, in
    bytes. residues: of those that were embedded. num_cached: sequences that were in the cache.
    precision: of the arithmetic; several, joined by +, where workers differ.
    """

    next: int = 0
    offset: int = 0
    residues: int = 0
    num_cached: int = 0
    num_failed: int = 0
    precision: str = ""

    def to_fields(self) -> dict[str, str | int]:
        return {**vars(self)}


@dataclass(frozen=True)
class Job:
    """A job at one moment. Times are seconds since 1970, by Redis's clock.

    live_sequences, live_residues: done in the window that is under way, not yet for good.
    run_at, run_residues: when the worker that has it now took it, and how far it was then.
    tries: workers that took it since it last came further. reason: why it failed, or what it waits for.
    result: name of the finished file. is_expired: the file is gone.
    """

    order: Order
    state: State
    progress: Progress
    submitted_at: float
    started_at: float | None
    ended_at: float | None
    live_sequences: int
    live_residues: int
    run_at: float | None
    run_residues: int
    tries: int
    reason: str
    result: str
    result_bytes: int
    is_expired: bool

    @property
    def id(self) -> str:
        return self.order.id

    @classmethod
    def from_hash(cls, job_id: str, record: Mapping[bytes, bytes]) -> Self:
        """
        Raises:
            ValueError: the record is another version's.
        """
        fields = {name.decode(): value.decode() for name, value in record.items()}
        if missing := {"owner", "model", "tag", "options", "state", "submitted_at"} - fields.keys():
            raise ValueError(f"job {job_id} has no {', '.join(sorted(missing))}")

        def number(name: str) -> int:
            return int(fields.get(name, 0))

        def moment(name: str) -> float | None:
            return float(fields[name]) if name in fields else None

        order = Order(
            job_id,
            owner=fields["owner"],
            model=fields["model"],
            tag=fields["tag"],
            options=JobOptions.model_validate_json(fields["options"]),
            num_sequences=number("num_sequences"),
            num_residues=number("num_residues"),
            trace=fields.get("trace", ""),
        )
        state: Any = fields["state"]
        return cls(
            order=order,
            state=state,
            progress=Progress(
                next=number("next"),
                offset=number("offset"),
                residues=number("residues"),
                num_cached=number("num_cached"),
                num_failed=number("num_failed"),
                precision=fields.get("precision", ""),
            ),
            submitted_at=float(fields["submitted_at"]),
            started_at=moment("started_at"),
            ended_at=moment("ended_at"),
            live_sequences=number("live_sequences"),
            live_residues=number("live_residues"),
            run_at=moment("run_at"),
            run_residues=number("run_residues"),
            tries=number("tries"),
            reason=fields.get("reason", ""),
            result=fields.get("result", ""),
            result_bytes=number("result_bytes"),
            is_expired="expired" in fields,
        )

    @property
    def num_done(self) -> int:
        """Sequences that are done with, in the window under way too."""
        return self.progress.next + self.live_sequences

    @property
    def num_residues_done(self) -> int:
        return self.progress.residues + self.live_residues

    def residues_per_s(self, now: float) -> float | None:
        """Since the worker that has it now took it; None before anything was done."""
        if self.state != "running" or self.run_at is None:
            return None
        done = self.num_residues_done - self.run_residues
        return done / (now - self.run_at) if done > 0 and now > self.run_at else None

    def eta_s(self, now: float) -> float | None:
        """Seconds until all is computed, if it goes on as it went."""
        rate = self.residues_per_s(now)
        return None if rate is None else max(0, self.order.num_residues - self.num_residues_done) / rate
