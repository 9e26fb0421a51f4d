"""Spans of calls over gRPC, by OpenTelemetry: where and how they are sent, OTEL_* variables say."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import grpc

from embedcomp.errors import BadSettings
from embedcomp.serving.caller import Caller

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

SERVICE = "embedcomp"  # the service's name, unless OTEL_SERVICE_NAME says another


class Tracing:
    """Spans of this server's calls, as children of their callers' own.

    Raises:
        BadSettings: the packages of the extra `trace` are not there.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry.instrumentation.grpc import server_interceptor
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            exporter = _exporter()
        except ImportError as error:
            raise BadSettings(
                f"traces take packages that are not installed ({error}); install the extra with "
                "pip install 'embedcomp[trace]', or leave out --trace"
            ) from error
        named = Resource({"service.name": SERVICE})
        self._provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(__name__)
        self.interceptor: grpc.ServerInterceptor = server_interceptor(self._provider)

    def tell_parts(self, caller: Caller) -> None:
        """Tell how long a call waited and was scored, within its span. For the call's thread."""
        if not caller.came:
            return
        since = time.time_ns() - time.perf_counter_ns()  # what both clocks are apart
        came = since + round(1e9 * caller.came)
        turn, end = (came + round(1e9 * s) for s in (caller.queued_s, caller.scored_s))
        self._tracer.start_span("queue", start_time=came).end(turn)
        self._tracer.start_span("compute", start_time=turn).end(end)

    def close(self) -> None:
        """Send the spans that are left."""
        self._provider.shutdown()


def _exporter() -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
