"""The table from error to status, and the shape of a body."""

from __future__ import annotations

from models.catalogue import MINI, UnknownModel
from serving import errors
from serving.errors import (
    InvalidSequences,
    JobNotUnderstood,
    ModelNotLoaded,
    Overloaded,
    Problem,
    RunnerUnavailable,
    ServiceError,
    ShuttingDown,
    body_of,
    status_of,
)


def test_every_kind_of_error_has_a_status() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, ServiceError)]
    assert {kind for kind in kinds if kind is not ServiceError} <= set(errors.STATUS)


def test_an_unforeseen_error_says_nothing_of_itself() -> None:
    error = KeyError("a secret")
    assert status_of(error) == 500
    assert "secret" not in str(body_of(error))


def test_an_unknown_model_is_answered_with_the_near_names() -> None:
    body = body_of(UnknownModel("esm2_min", [MINI.name, "prot_t5"]))
    assert body["error"] == "Unknown model"
    assert "did you mean esm2_mini?" in body["detail"]


def test_wrong_sequences_are_listed_up_to_a_limit() -> None:
    problems = [Problem(index, "the sequence is empty", f"p{index}") for index in range(errors.MAX_PROBLEMS + 5)]
    body = body_of(InvalidSequences(problems))
    assert body["detail"] == "sequence 0 (p0): the sequence is empty (and 104 more)"
    assert len(body["items"]) == errors.MAX_PROBLEMS
    assert body["items"][0] == {"index": 0, "reason": "the sequence is empty", "id": "p0"}


def test_an_overload_says_in_how_many_whole_seconds_to_come_again() -> None:
    error = Overloaded("too much waits", 6.2)
    assert error.retry_after_s == 6.2
    assert status_of(error) == 429
    assert body_of(error) == {"error": "Overloaded", "detail": "too much waits; try again in 7 s"}


def test_only_what_depends_on_time_says_when_to_come_again() -> None:
    kinds = [kind for kind in errors.STATUS if issubclass(kind, ServiceError) and kind is not Overloaded]
    timed = [kind for kind in kinds if kind.retry_after_s is not None]
    assert timed == [RunnerUnavailable, ModelNotLoaded, JobNotUnderstood, ShuttingDown]
