"""Reports of metrics as OTLP sends them, in JSON or protobuf, read into plain values.

Workers of this platform send JSON, each of them once a second while it works: that form is read without protobuf's
own reader, which takes ten times as long.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from flashkit.errors import InputError

REPORT_LIMIT_BYTES: Final = 4 * 1024 * 1024
"""Size of one report, also when it is unpacked."""
_KINDS: Final = ("sum", "gauge", "histogram")
_DELTA: Final = (1, "AGGREGATION_TEMPORALITY_DELTA")
_HINT: Final = "send ExportMetricsServiceRequest, as OTLP over HTTP does"


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a series."""

    labels: Mapping[str, object]
    number: float = 0.0
    """Of a sum or a gauge; of a histogram the sum of its values."""
    counts: Sequence[int] = ()
    bounds: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """One metric in a report."""

    name: str
    kind: str
    """`sum`, `gauge`, `histogram`, or empty for one of another kind, whose points are empty."""
    is_delta: bool
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What one process tells."""

    endpoint: str
    instance: str
    readings: Sequence[Reading]


def decode_report(body: bytes, *, content_type: str, encoding: str) -> list[WorkerReport]:
    """Return what a request's body tells.

    Raises:
        InputError: It is no report, or too large.
    """
    data = _unpack(body) if encoding == "gzip" else body
    if content_type.partition(";")[0].strip() != "application/json":
        return list(_read_protobuf(data))
    try:
        return list(_read_json(orjson.loads(data)))
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise InputError(f"the body is no report of metrics: {exc!r:.200}", hint=_HINT) from exc


def encode_answer(rejected: int) -> bytes:
    """Return the answer to a report of which so many values were of no use."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

    answer = ExportMetricsServiceResponse()
    if rejected:
        answer.partial_success.rejected_data_points = rejected
        answer.partial_success.error_message = "GET /metrics says why, in flashkit_reports_dropped_total"
    encoded: bytes = answer.SerializeToString()
    return encoded


def _unpack(body: bytes) -> bytes:
    try:
        data = gzip.GzipFile(fileobj=io.BytesIO(body)).read(REPORT_LIMIT_BYTES + 1)
    except (OSError, EOFError, zlib.error) as exc:
        raise InputError(f"the body is not gzip: {exc}") from exc
    if len(data) > REPORT_LIMIT_BYTES:
        raise InputError(f"the report has more than {REPORT_LIMIT_BYTES:,} bytes", hint="report more often")
    return data


# ---------------------------------------------------------------------- JSON


def _read_json(data: dict[str, Any]) -> Iterator[WorkerReport]:
    for group in data.get("resourceMetrics", ()):
        resource = _attributes_in(group.get("resource", {}).get("attributes", ()))
        metrics = [metric for scope in group.get("scopeMetrics", ()) for metric in scope.get("metrics", ())]
        yield _report(resource, [_reading_in(metric) for metric in metrics])


def _reading_in(metric: Mapping[str, Any]) -> Reading:
    kind = next((kind for kind in _KINDS if kind in metric), "")
    if not kind:
        return _unknown(str(metric["name"]), sum(_count_points(value) for value in metric.values()))
    data = metric[kind]
    points = [_point_in(point) for point in data.get("dataPoints", ())]
    return Reading(str(metric["name"]), kind, data.get("aggregationTemporality") in _DELTA, points)


def _count_points(value: Any) -> int:
    return len(value.get("dataPoints", ())) if isinstance(value, dict) else 0


def _point_in(point: Mapping[str, Any]) -> Point:
    return Point(
        _attributes_in(point.get("attributes", ())),
        float(point.get("asDouble", point.get("asInt", point.get("sum", 0.0)))),
        [int(count) for count in point.get("bucketCounts", ())],
        [float(bound) for bound in point.get("explicitBounds", ())],
    )


def _attributes_in(attributes: Iterable[Mapping[str, Any]]) -> dict[str, object]:
    """Return attributes by name; of a value that is no plain one, its JSON form."""
    return {str(each["key"]): next(iter(each.get("value", {}).values()), "") for each in attributes}


# ---------------------------------------------------------------------- protobuf


def _read_protobuf(data: bytes) -> Iterator[WorkerReport]:
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    request = ExportMetricsServiceRequest()
    try:
        request.ParseFromString(data)
    except DecodeError as exc:
        raise InputError(f"the body is no report of metrics: {exc}", hint=_HINT) from exc
    for group in request.resource_metrics:
        metrics = [metric for scope in group.scope_metrics for metric in scope.metrics]
        yield _report(_attributes_of(group.resource.attributes), [_reading_of(metric) for metric in metrics])


def _reading_of(metric: Any) -> Reading:
    kind = metric.WhichOneof("data") or ""
    data: Any = getattr(metric, kind) if kind else None
    if kind not in _KINDS:
        return _unknown(metric.name, len(data.data_points) if kind else 0)
    is_delta = kind != "gauge" and data.aggregation_temporality in _DELTA
    read = _buckets_of if kind == "histogram" else _number_of
    return Reading(metric.name, kind, is_delta, [read(point) for point in data.data_points])


def _number_of(point: Any) -> Point:
    number = point.as_int if point.WhichOneof("value") == "as_int" else point.as_double
    return Point(_attributes_of(point.attributes), float(number), [], [])


def _buckets_of(point: Any) -> Point:
    return Point(_attributes_of(point.attributes), point.sum, list(point.bucket_counts), list(point.explicit_bounds))


def _attributes_of(attributes: Any) -> dict[str, object]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value") for each in attributes}


def _unknown(name: str, points: int) -> Reading:
    return Reading(name, "", is_delta=False, points=[Point({})] * points)


def _report(resource: Mapping[str, object], readings: Sequence[Reading]) -> WorkerReport:
    return WorkerReport(str(resource.get("service.name", "")), str(resource.get("service.instance.id", "")), readings)
