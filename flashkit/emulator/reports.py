"""What workers report about themselves, by OTLP: taken in, bounded, and added up for each endpoint.

Workers live for seconds, so nobody can scrape them: they send what has happened since their last report (delta
temporality), and it is added to the endpoint's figures here. Sums of a whole life are refused: of workers that come
and go they would have to be told apart, and that is what a collector is for.

Only metrics of `flashkit.telemetry.metrics` are kept, only of endpoints that there are, and only so many series of
each. What is left out is counted, and the sender is told.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from flashkit.errors import InputError
from flashkit.telemetry.metrics import BY_NAME, Across, Histogram, Kind, LabelGuard, Metric, Source

if TYPE_CHECKING:
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

REPORTS_PATH: Final = "/v1/metrics"
"""Where OTLP over HTTP sends metrics, below the address of OTEL_EXPORTER_OTLP_ENDPOINT."""
REPORT_LIMIT_BYTES: Final = 4 * 1024 * 1024
"""Size of one report, also when it is unpacked."""
GAUGE_SECONDS: Final = 120.0
"""A worker that has not reported for so long has no part in its endpoint's gauges any more."""
MOST_INSTANCES: Final = 1_000
"""Workers whose gauges are remembered, of one series."""

Values = tuple[str, ...]
"""The values of a metric's labels, in their order."""


@dataclass(slots=True)
class Reported:
    """What the workers of one endpoint have reported."""

    guard: LabelGuard = field(default_factory=LabelGuard)
    counters: dict[tuple[str, Values], float] = field(default_factory=dict)
    histograms: dict[tuple[str, Values], Histogram] = field(default_factory=dict)
    gauges: dict[tuple[str, Values], dict[str, _Seen]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Seen:
    at: float
    value: float


class Reports:
    """Adds up what workers report.

    Args:
        endpoints: The names of the endpoints that there are now.
        clock: Gives the time.
    """

    def __init__(self, endpoints: Callable[[], Collection[str]], *, clock: Callable[[], float]) -> None:
        self._endpoints = endpoints
        self._clock = clock
        self._reported: dict[str, Reported] = {}
        self.dropped: Counter[str] = Counter()
        """Values that could not be used, by why."""

    def take(self, request: ExportMetricsServiceRequest) -> int:
        """Add a report to what is known, and return how many values of it were of no use."""
        before = self.dropped.total()
        known = self._endpoints()
        for gone in self._reported.keys() - set(known):
            del self._reported[gone]
        for group in request.resource_metrics:
            resource = _read_attributes(group.resource.attributes)
            metrics = [metric for scope in group.scope_metrics for metric in scope.metrics]
            endpoint = str(resource.get("service.name", ""))
            if endpoint not in known:
                self.dropped["unknown_endpoint"] += sum(len(_points_of(metric)) for metric in metrics)
                continue
            reported = self._reported.setdefault(endpoint, Reported())
            for metric in metrics:
                self._take_metric(reported, metric, str(resource.get("service.instance.id", "")))
        return self.dropped.total() - before

    def _take_metric(self, reported: Reported, metric: Any, instance: str) -> None:
        points, known = _points_of(metric), BY_NAME.get(metric.name)
        if known is None or known.source is not Source.WORKER:
            self.dropped["unknown_metric"] += len(points)
            return
        if not _is_supported(known, metric):
            self.dropped["unsupported"] += len(points)
            return
        for point in points:
            folded = reported.guard.folded
            values = reported.guard.values(known, _read_attributes(point.attributes))
            self.dropped["too_many_series"] += reported.guard.folded - folded
            self._take_point(reported, known, values, point, instance)

    def _take_point(self, reported: Reported, metric: Metric, values: Values, point: Any, instance: str) -> None:
        key = (metric.name, values)
        if metric.kind is Kind.GAUGE:
            seen = reported.gauges.setdefault(key, {})
            seen.pop(instance, None)
            seen[instance] = _Seen(self._clock(), _number_of(point))
            if len(seen) > MOST_INSTANCES:
                del seen[next(iter(seen))]
        elif metric.kind is Kind.COUNTER:
            reported.counters[key] = reported.counters.get(key, 0.0) + max(0.0, _number_of(point))
        elif tuple(point.explicit_bounds) != metric.buckets or len(point.bucket_counts) != len(metric.buckets) + 1:
            self.dropped["unsupported"] += 1
        else:
            histogram = reported.histograms.setdefault(key, Histogram(metric.buckets))
            histogram.add(point.bucket_counts, point.sum)

    def counters(self, metric: Metric) -> Iterable[tuple[str, Values, float]]:
        """Yield endpoint, labels and value of each series."""
        for endpoint, reported in self._reported.items():
            for (name, values), number in reported.counters.items():
                if name == metric.name:
                    yield endpoint, values, number

    def histograms(self, metric: Metric) -> Iterable[tuple[str, Values, Histogram]]:
        """Yield endpoint, labels and histogram of each series."""
        for endpoint, reported in self._reported.items():
            for (name, values), histogram in reported.histograms.items():
                if name == metric.name:
                    yield endpoint, values, histogram

    def gauges(self, metric: Metric) -> Iterable[tuple[str, Values, float]]:
        """Yield endpoint, labels and value of each series, of the workers that reported lately."""
        since = self._clock() - GAUGE_SECONDS
        for endpoint, reported in self._reported.items():
            for (name, values), seen in reported.gauges.items():
                numbers = [each.value for each in seen.values() if each.at >= since]
                if name == metric.name and numbers:
                    yield endpoint, values, max(numbers) if metric.across is Across.MAX else sum(numbers)

    def gauge(self, name: str, endpoint: str) -> float | None:
        """Return the value of a gauge without labels; None where no worker reported it lately."""
        return next((value for owner, _, value in self.gauges(BY_NAME[name]) if owner == endpoint), None)


def decode_report(body: bytes, *, content_type: str, encoding: str) -> ExportMetricsServiceRequest:
    """Return a report from a request's body.

    Raises:
        InputError: It is no report, or too large.
    """
    from google.protobuf import json_format
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    data = _unpack(body) if encoding == "gzip" else body
    request = ExportMetricsServiceRequest()
    try:
        if content_type.partition(";")[0].strip() == "application/json":
            json_format.Parse(data, request, ignore_unknown_fields=True)
        else:
            request.ParseFromString(data)
    except (DecodeError, json_format.ParseError, UnicodeDecodeError, RecursionError) as exc:
        raise InputError(
            f"the body is no report of metrics: {exc}", hint="send ExportMetricsServiceRequest, as OTLP over HTTP does"
        ) from exc
    return request


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


def _points_of(metric: Any) -> Any:
    kind = metric.WhichOneof("data")
    return () if kind is None else getattr(metric, kind).data_points


def _is_supported(known: Metric, metric: Any) -> bool:
    """True for the kind of data that the metric has, in pieces that can be added up."""
    from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_DELTA

    kinds = {Kind.COUNTER: "sum", Kind.GAUGE: "gauge", Kind.HISTOGRAM: "histogram"}
    kind = metric.WhichOneof("data")
    if kind != kinds[known.kind]:
        return False
    return kind == "gauge" or bool(getattr(metric, kind).aggregation_temporality == AGGREGATION_TEMPORALITY_DELTA)


def _number_of(point: Any) -> float:
    return float(point.as_int if point.WhichOneof("value") == "as_int" else point.as_double)


def _read_attributes(attributes: Any) -> Mapping[str, object]:
    """Return attributes that are plain; of others, nothing."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value") for each in attributes}
