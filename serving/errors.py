"""One tree of errors, one table from error to status, one shape of body."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from models.catalogue import UnknownModel

MAX_PROBLEMS = 100  # of a request, that are listed in the reply


class ServiceError(Exception):
    """What a client is told. `title` is the short name of the kind, the message says what is wrong here.

    retry_after_s: in how many seconds the same request has a chance; None where that does not depend on time.
    """

    title = "Internal error"
    retry_after_s: float | None = None


class MalformedBody(ServiceError):
    title = "Malformed body"


class InvalidRequest(ServiceError):
    title = "Validation error"


@dataclass(frozen=True)
class Problem:
    """What is wrong with one sequence or text. index counts from 0 in the request, position from 1 in it."""

    index: int
    reason: str
    id: str | None = None
    position: int | None = None
    character: str | None = None
    kind: Literal["sequence", "text"] = "sequence"

    def __str__(self) -> str:
        name = f"{self.kind} {self.index}" + (f" ({self.id})" if self.id else "")
        return f"{name}: {self.reason}"


class InvalidSequences(ServiceError):
    """Some sequences cannot be embedded; every one of them is named."""

    title = "Invalid sequence"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = problems
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{problems[0]}{more}")


class InvalidTexts(InvalidSequences):
    """The same of texts."""

    title = "Validation error"


class TooManySequences(ServiceError):
    title = "Too many sequences"

    def __init__(self, count: int, limit: int, what: str = "sequences") -> None:
        super().__init__(f"{count} {what} in one request; the limit is {limit}")


class BodyTooLarge(ServiceError):
    title = "Body too large"


class Overloaded(ServiceError):
    """There is more to do than is done; nothing is wrong with the request."""

    title = "Overloaded"

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(f"{reason}; try again in {math.ceil(retry_after_s)} s")
        self.retry_after_s = retry_after_s


class KeyMissing(ServiceError):
    """A key is needed, and none came."""

    title = "Unauthorized"
    reason = "missing"


class KeyUnknown(ServiceError):
    title = "Unauthorized"
    reason = "unknown"


class KeyNotAllowed(ServiceError):
    """It is known who asks, and this is not for him."""

    title = "Forbidden"
    reason = "forbidden"


class RateLimited(Overloaded):
    """A caller asks for more than he may; what others ask for has nothing to do with it."""

    title = "Rate limit exceeded"


class ShuttingDown(ServiceError):
    """The process ends before the request could be finished."""

    title = "Shutting down"
    retry_after_s = 5.0


class UnsupportedBody(ServiceError):
    title = "Unsupported media type"


class NoSuchModel(ServiceError):
    """None of the kind is served that a request needs without naming one."""

    title = "Unknown model"


class UnknownOutput(ServiceError):
    title = "Not found"


class ExpiredOutput(ServiceError):
    title = "Expired"


class UnknownJob(ServiceError):
    title = "Not found"


class JobNotDone(ServiceError):
    title = "Not done"


class JobNotUnderstood(ServiceError):
    """Another version of the service wrote it, and may still run beside this one."""

    title = "Not understood"
    retry_after_s = 15.0


class RunnerUnavailable(ServiceError):
    title = "Runner unavailable"
    retry_after_s = 15.0  # BentoML looks after its processes every 10 seconds, and then loads the model


class ModelNotLoaded(RunnerUnavailable):
    """The runner is there, and has no model to run; it tries again now and then."""

    title = "Model not loaded"
    retry_after_s = 60.0


class StoreUnavailable(ServiceError):
    """Redis, or the folder of the outputs, does not answer."""

    title = "Store unavailable"


class DeadlineExceeded(ServiceError):
    title = "Deadline exceeded"


class InferenceFailed(ServiceError):
    title = "Inference failed"


STATUS: dict[type[Exception], int] = {
    MalformedBody: 400,
    KeyMissing: 401,
    KeyUnknown: 401,
    KeyNotAllowed: 403,
    UnknownModel: 404,
    NoSuchModel: 404,
    UnknownOutput: 404,
    UnknownJob: 404,
    JobNotDone: 409,
    ExpiredOutput: 410,
    TooManySequences: 413,
    BodyTooLarge: 413,
    UnsupportedBody: 415,
    InvalidRequest: 422,
    InvalidSequences: 422,
    InvalidTexts: 422,
    Overloaded: 429,
    RateLimited: 429,
    InferenceFailed: 500,
    RunnerUnavailable: 503,
    ModelNotLoaded: 503,
    JobNotUnderstood: 503,
    StoreUnavailable: 503,
    ShuttingDown: 503,
    DeadlineExceeded: 504,
}


def status_of(error: Exception) -> int:
    """The HTTP status of an error; 500 for one that is not in the table."""
    return STATUS.get(type(error), 500)


def body_of(error: Exception) -> dict[str, Any]:
    """`{"error": kind, "detail": what is wrong here}`, with every sequence that is named in `items`."""
    if isinstance(error, UnknownModel):
        return {"error": "Unknown model", "detail": str(error), "known_models": error.known}
    if not isinstance(error, ServiceError):
        return {"error": ServiceError.title, "detail": "the server's log has the details"}
    body: dict[str, Any] = {"error": error.title, "detail": str(error)}
    if isinstance(error, InvalidSequences):
        body["items"] = [
            {name: value for name, value in asdict(problem).items() if value is not None and name != "kind"}
            for problem in error.problems[:MAX_PROBLEMS]
        ]
    return body
