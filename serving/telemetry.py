"""What the service says of itself while it runs: logs and traces."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from opentelemetry import propagate, trace
from opentelemetry.trace import Span
from pydantic import ValidationError
from pythonjsonlogger.json import JsonFormatter

if TYPE_CHECKING:
    from serving.settings import LogFormat, Settings

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
TRACEPARENT = "traceparent"
TEXT_FORMAT = "%(asctime)s [%(levelname)s] [%(name)s] %(message)s%(context)s"
_JSON_NAMES = {"asctime": "timestamp", "levelname": "level", "name": "logger"}
_OURS = ("models", "serving", "service")
_OTHERS = ("", "bentoml", "uvicorn.error")  # whose lines take the same form; "" is everybody else
# What pydantic shows of a value that it refuses, at the end of a line
_INPUT = re.compile(r", input_value=.*, input_type=\w+\]$", re.MULTILINE)
_tracer = trace.get_tracer("protein_embedding_service")


class _Context(logging.Filter):
    """Adds the request and the trace that a line belongs to."""

    def filter(self, record: logging.LogRecord) -> bool:
        context = trace.get_current_span().get_span_context()
        record.request_id = REQUEST_ID.get()
        record.trace_id = format(context.trace_id, "032x") if context.is_valid else ""
        parts = [f"{name}={getattr(record, name)}" for name in ("request_id", "trace_id") if getattr(record, name)]
        record.context = f" ({', '.join(parts)})" if parts else ""
        return True


class _OwnFaults(logging.Filter):
    """What BentoML logs as an exception though a client has done something wrong is left out: the client is told,
    and the line of the request has the status."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is None or not record.name.startswith("bentoml"):
            return True
        status = getattr(error, "error_code", HTTPStatus.INTERNAL_SERVER_ERROR)
        return not isinstance(error, ValidationError) and status >= HTTPStatus.INTERNAL_SERVER_ERROR


class _Text(logging.Formatter):
    """One line, whatever stands in the message; behind it a traceback, without what a client sent."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        return line if line.isprintable() else "".join(map(_printable, line))

    def formatException(self, ei: Any) -> str:
        return _INPUT.sub("]", super().formatException(ei))


class _Json(JsonFormatter):
    """One object a line, without what is empty and what is only there for text."""

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in log_data.items() if name != "context" and value not in ("", None)}

    def formatException(self, ei: Any) -> str:
        return _INPUT.sub("]", str(super().formatException(ei)))


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def configure_logging(level: str, form: LogFormat = "text") -> None:
    """All loggers of this process to standard error, in one form; ours at `level` and above."""
    handler = logging.StreamHandler()
    handler.addFilter(_OwnFaults())
    handler.addFilter(_Context())
    handler.setFormatter(
        _Text(TEXT_FORMAT)
        if form == "text"
        else _Json("%(asctime)s %(levelname)s %(name)s %(message)s", rename_fields=_JSON_NAMES)
    )
    for name in (*_OURS, *_OTHERS):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
    for name in _OURS:
        logging.getLogger(name).setLevel(level)


def configure_tracing(settings: Settings, part: str) -> None:
    """Sends this process's spans to an OpenTelemetry collector; without an endpoint none are made.

    Sampling, headers and certificates are the SDK's own settings (OTEL_TRACES_SAMPLER and the like).

    Args:
        part: gateway, or a runner's name.
    """
    endpoint = settings.otel_exporter_otlp_endpoint
    if endpoint is None:
        return
    # Heavy, and only needed here
    from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

    exporter: SpanExporter
    if settings.otel_exporter_otlp_protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        exporter = GrpcExporter(endpoint=endpoint)
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        exporter = HttpExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    resource = Resource.create(
        {
            SERVICE_NAME: settings.otel_service_name,
            SERVICE_VERSION: settings.otel_service_version,
            SERVICE_INSTANCE_ID: f"{part}-{os.getpid()}",
        }
    )
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


@contextmanager
def span(
    name: str, attributes: Mapping[str, str | int] | None = None, parent: str | None = None
) -> Iterator[Span]:
    """A span of the current trace, while this is open, or below a parent that `traceparent` gave."""
    context = None if parent is None else propagate.extract({TRACEPARENT: parent})
    with _tracer.start_as_current_span(name, context=context, attributes=attributes) as current:
        yield current


def traceparent() -> str:
    """The current span, in W3C's form; "" where there is none."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get(TRACEPARENT, "")
