"""Export with OpenTelemetry's SDK: the only module that imports it, when the first span goes to a collector."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from flashkit.telemetry.exporter import Delivery
from flashkit.telemetry.otlp import OP_KEY, SpanRecord, kind_number

_KINDS = {1: SpanKind.INTERNAL, 2: SpanKind.SERVER, 3: SpanKind.CLIENT, 5: SpanKind.CONSUMER}


class SdkExport:
    """Sends records to the collector that OTEL_EXPORTER_OTLP_ENDPOINT and its sisters name."""

    def __init__(self, *, service: str, worker_id: str) -> None:
        # It reports each failed request; an exporter says once what that means.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
        self._exporter = OTLPSpanExporter()
        self._resource = Resource.create({"service.name": service, "service.instance.id": worker_id})
        self._scope = InstrumentationScope("flashkit")

    def send(self, records: Sequence[SpanRecord]) -> Delivery:
        """Send ended spans; the exporter tries again by itself where that may help."""
        result = self._exporter.export([self._span_of(record) for record in records])
        return Delivery.SENT if result is SpanExportResult.SUCCESS else Delivery.REFUSED

    def close(self) -> None:
        """Close connections."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # theirs

    def _span_of(self, record: SpanRecord) -> ReadableSpan:
        return ReadableSpan(
            record.name,
            context=_context(record.trace_id, record.span_id),
            parent=_context(record.trace_id, record.parent_id) if record.parent_id else None,
            resource=self._resource,
            attributes={OP_KEY: record.op, **record.attributes},
            kind=_KINDS[kind_number(record.op)],
            status=Status(StatusCode.ERROR, record.error) if record.error else Status(StatusCode.UNSET),
            start_time=record.start_ns,
            end_time=record.end_ns,
            instrumentation_scope=self._scope,
        )


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
