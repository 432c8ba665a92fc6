"""An OpenTelemetry collector that keeps what it is sent: OTLP over gRPC or HTTP."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)


@dataclass(frozen=True)
class Span:
    """One span. instance: which process made it."""

    trace_id: str
    id: str
    parent: str
    name: str
    instance: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]


@dataclass
class Collector:
    """url: to send to. protocol: as OTEL_EXPORTER_OTLP_PROTOCOL has it."""

    url: str
    protocol: str
    spans: list[Span] = field(default_factory=list)

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            about = _values(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [
                    Span(
                        one.trace_id.hex(),
                        one.span_id.hex(),
                        one.parent_span_id.hex(),
                        one.name,
                        f"{about['service.name']} {about['service.instance.id'].rpartition('-')[0]}",
                        one.start_time_unix_nano,
                        one.end_time_unix_nano,
                        _values(one.attributes),
                    )
                    for one in scope.spans
                ]

    def of(self, trace_id: str) -> list[Span]:
        """A trace's spans, in the order in which they began."""
        return sorted((s for s in list(self.spans) if s.trace_id == trace_id), key=lambda s: s.start_ns)

    def tree(self, trace_id: str) -> str:
        """The trace as text: indented by parent, with beginning and duration in milliseconds."""
        spans = self.of(trace_id)
        known = {span.id for span in spans}
        lines: list[str] = []

        def show(span: Span, depth: int) -> None:
            begin, took = (span.start_ns - spans[0].start_ns) / 1e6, (span.end_ns - span.start_ns) / 1e6
            lines.append(f"{begin:9.1f} {took:9.1f}  {'  ' * depth}{span.name}")
            for child in spans:
                if child.parent == span.id:
                    show(child, depth + 1)

        for span in spans:
            if span.parent not in known:
                show(span, 0)
        return "\n".join(lines)


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@contextlib.contextmanager
def collecting(protocol: str) -> Iterator[Collector]:
    """A collector on a free port."""
    with _by_grpc() if protocol == "grpc" else _by_http() as collector:
        yield collector


@contextlib.contextmanager
def _by_grpc() -> Iterator[Collector]:
    collector = Collector("", "grpc")

    class Servicer(TraceServiceServicer):
        def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:
            collector.take(request)
            return ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(4))
    add_TraceServiceServicer_to_server(Servicer(), server)  # type: ignore[no-untyped-call]
    collector.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


@contextlib.contextmanager
def _by_http() -> Iterator[Collector]:
    collector = Collector("", "http/protobuf")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            collector.take(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
