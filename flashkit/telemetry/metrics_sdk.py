"""Metrics by OpenTelemetry's SDK: the only module of metrics that imports it, when the first report goes out."""

from __future__ import annotations

import logging
from typing import Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Histogram as SdkHistogram
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from flashkit.telemetry.exporter import Delivery
from flashkit.telemetry.metrics import BY_NAME, Histogram, Kind
from flashkit.telemetry.metrics_export import labels_of
from flashkit.telemetry.metrics_worker import Key, Totals


class SdkMetricsExport:
    """Sends figures to the collector that OTEL_EXPORTER_OTLP_ENDPOINT and its sisters name."""

    def __init__(self, *, endpoint: str, service: str, worker_id: str, is_delta: bool) -> None:
        # It reports each failed request; a reporter says once what that means.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
        self._exporter = OTLPMetricExporter()
        self._endpoint = endpoint
        self._temporality = AggregationTemporality.DELTA if is_delta else AggregationTemporality.CUMULATIVE
        self._resource = Resource.create({"service.name": service, "service.instance.id": worker_id})

    def send(self, totals: Totals) -> Delivery:
        """Send figures; the exporter tries again by itself where that may help."""
        data: dict[str, list[Any]] = {}
        for key, number in totals.counters.items():
            data.setdefault(key[0], []).append(self._number(key, number, totals))
        for key, histogram in totals.histograms.items():
            data.setdefault(key[0], []).append(self._histogram(key, histogram, totals))
        for name, value in totals.gauges.items():
            data.setdefault(name, []).append(self._number((name, ()), value, totals))
        metrics = [self._metric(name, points) for name, points in data.items()]
        scope = ScopeMetrics(InstrumentationScope("flashkit"), metrics, "")
        result = self._exporter.export(MetricsData([ResourceMetrics(self._resource, [scope], "")]))
        return Delivery.SENT if result is MetricExportResult.SUCCESS else Delivery.LATER

    def close(self) -> None:
        """Let go of the connection."""
        self._exporter.shutdown()

    def _metric(self, name: str, points: list[Any]) -> Metric:
        known = BY_NAME[name]
        data: Any
        match known.kind:
            case Kind.COUNTER:
                data = Sum(points, self._temporality, is_monotonic=True)
            case Kind.GAUGE:
                data = Gauge(points)
            case Kind.HISTOGRAM:
                data = SdkHistogram(points, self._temporality)
        return Metric(name, known.words, known.unit, data)

    def _number(self, key: Key, value: float, totals: Totals) -> NumberDataPoint:
        return NumberDataPoint(labels_of(key, self._endpoint), totals.began_ns, totals.at_ns, value)

    def _histogram(self, key: Key, histogram: Histogram, totals: Totals) -> HistogramDataPoint:
        return HistogramDataPoint(
            labels_of(key, self._endpoint),
            totals.began_ns,
            totals.at_ns,
            histogram.count,
            histogram.sum,
            list(histogram.counts),
            list(histogram.bounds),
            0.0,
            0.0,
        )
