"""The form of log lines, what stands in them and what does not."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from serving.settings import LogFormat
from serving.telemetry import REQUEST_ID, configure_logging, traceparent

SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQ"
NAMES = ("", "models", "serving", "service", "bentoml", "uvicorn.error")


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


class Body(BaseModel):
    sequences: list[str]


class TooLarge(Exception):
    """What BentoML raises for a client's fault looks like this."""

    error_code = 413


class Defect(Exception):
    error_code = 500


def written(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def objects(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written(capsys)]


def log_failure(name: str, error: Exception) -> None:
    try:
        raise error
    except Exception:
        logging.getLogger(name).exception("Exception on %s", "/encode")


def of_validation() -> ValidationError:
    with pytest.raises(ValidationError) as error:
        Body.model_validate({"sequences": SEQUENCE})
    return error.value


def test_a_line_of_text_has_time_level_logger_and_request(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    logging.getLogger("serving.x").info("%d went well", 3)
    token = REQUEST_ID.set("abc")
    logging.getLogger("models.y").warning("one did not")
    REQUEST_ID.reset(token)
    first, second = written(capsys)
    assert first.endswith("[INFO] [serving.x] 3 went well")
    assert second.endswith("[WARNING] [models.y] one did not (request_id=abc)")


def test_a_line_of_json_is_one_object_with_facts(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "json")
    token = REQUEST_ID.set("abc")
    logging.getLogger("serving.access").info("done", extra={"status": 200, "tokens": 0, "model": ""})
    REQUEST_ID.reset(token)
    logging.getLogger("service").info("no request\nin two lines")
    first, second = objects(capsys)
    assert {name: first[name] for name in ("level", "logger", "message", "status", "tokens", "request_id")} == {
        **{"level": "INFO", "logger": "serving.access", "message": "done", "status": 200, "tokens": 0},
        "request_id": "abc",
    }
    assert first["timestamp"]
    assert not {"model", "context", "trace_id"} & set(first)
    assert second["message"] == "no request\nin two lines"
    assert "request_id" not in second


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_level_is_of_our_own_loggers(capsys: pytest.CaptureFixture[str], form: LogFormat) -> None:
    configure_logging("ERROR", form)
    logging.getLogger("serving.x").warning("hidden")
    logging.getLogger("serving.x").error("shown")
    assert len(written(capsys)) == 1


def test_what_packages_say_takes_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    """Of those that nobody here knows, too: each line of the log can be read by a machine."""
    configure_logging("INFO", "json")
    for name in ("bentoml.serve", "uvicorn.error", "asyncio", "opentelemetry.sdk", "limits"):
        logging.getLogger(name).error("something")
    found = objects(capsys)
    assert [line["logger"] for line in found] == [
        *("bentoml.serve", "uvicorn.error", "asyncio", "opentelemetry.sdk", "limits")
    ]


@pytest.mark.parametrize("name", ["serving.x", "asyncio"])
def test_no_message_can_forge_a_line_of_text(capsys: pytest.CaptureFixture[str], name: str) -> None:
    configure_logging("INFO")
    logging.getLogger(name).error("a\n2026-01-01 [INFO] forged\r\x1b[31m\x00\u2028 %s", "\x85é")
    (line,) = written(capsys)
    assert line.endswith(r"a\n2026-01-01 [INFO] forged\r\x1b[31m\x00\u2028 \x85é")


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("name", ["serving.app", "asyncio"])
def test_a_traceback_has_nothing_of_what_a_client_sent(
    capsys: pytest.CaptureFixture[str], form: LogFormat, name: str
) -> None:
    configure_logging("INFO", form)
    log_failure(name, of_validation())
    err = capsys.readouterr().err
    assert "ValidationError" in err
    assert "[type=list_type]" in err
    assert SEQUENCE not in err


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_clients_fault_is_no_error_of_bentomls(capsys: pytest.CaptureFixture[str], form: LogFormat) -> None:
    """It is told to the client, and its status stands in the line of the request."""
    configure_logging("INFO", form)
    log_failure("bentoml._internal.server.http_app", of_validation())
    log_failure("bentoml._internal.server.http_app", TooLarge(SEQUENCE))
    assert written(capsys) == []
    log_failure("bentoml._internal.server.http_app", Defect("defect"))
    log_failure("bentoml._internal.server.http_app", ZeroDivisionError())
    err = capsys.readouterr().err
    assert err.count("Exception on /encode") == 2
    assert "Defect: defect" in err


def test_outside_of_a_trace_there_is_no_parent() -> None:
    assert traceparent() == ""


def test_logging_can_be_configured_again(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        configure_logging("INFO")
    logging.getLogger("serving").info("once")
    assert len(written(capsys)) == 1
