"""What workers report about themselves, by OTLP: taken in, bounded, and added up for each endpoint.

Workers live for seconds, so nobody can scrape them: they send what has happened since their last report (delta
temporality), and it is added to the endpoint's figures here. Sums of a whole life are refused: of workers that come
and go they would have to be told apart, and that is what a collector is for.

Only metrics of `flashkit.telemetry.metrics` are kept, only of endpoints that there are, and only so many series of
each. What is left out is counted, and the sender is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from flashkit.emulator.otlp_metrics import Point, Reading, WorkerReport
from flashkit.telemetry.metrics import BY_NAME, Across, Histogram, Kind, LabelGuard, Metric, Source

REPORTS_PATH: Final = "/v1/metrics"
"""Where OTLP over HTTP sends metrics, below the address of OTEL_EXPORTER_OTLP_ENDPOINT."""
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

    def take(self, reports: Iterable[WorkerReport]) -> int:
        """Add reports to what is known, and return how many values of them were of no use."""
        before = self.dropped.total()
        known = self._endpoints()
        for gone in self._reported.keys() - set(known):
            del self._reported[gone]
        for report in reports:
            if report.endpoint not in known:
                self.dropped["unknown_endpoint"] += sum(len(reading.points) for reading in report.readings)
                continue
            reported = self._reported.setdefault(report.endpoint, Reported())
            for reading in report.readings:
                self._take_reading(reported, reading, report.instance)
        return self.dropped.total() - before

    def _take_reading(self, reported: Reported, reading: Reading, instance: str) -> None:
        known = BY_NAME.get(reading.name)
        if known is None or known.source is not Source.WORKER:
            self.dropped["unknown_metric"] += len(reading.points)
            return
        if not _is_supported(known, reading):
            self.dropped["unsupported"] += len(reading.points)
            return
        for point in reading.points:
            folded = reported.guard.folded
            values = reported.guard.values(known, point.labels)
            self.dropped["too_many_series"] += reported.guard.folded - folded
            self._take_point(reported, known, values, point, instance)

    def _take_point(self, reported: Reported, metric: Metric, values: Values, point: Point, instance: str) -> None:
        key = (metric.name, values)
        if metric.kind is Kind.GAUGE:
            seen = reported.gauges.setdefault(key, {})
            seen.pop(instance, None)
            seen[instance] = _Seen(self._clock(), point.number)
            if len(seen) > MOST_INSTANCES:
                del seen[next(iter(seen))]
        elif metric.kind is Kind.COUNTER:
            reported.counters[key] = reported.counters.get(key, 0.0) + max(0.0, point.number)
        elif not _fits(point, metric):
            self.dropped["unsupported"] += 1
        else:
            histogram = reported.histograms.setdefault(key, Histogram(metric.buckets))
            histogram.add(point.counts, point.number)

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


def _fits(point: Point, metric: Metric) -> bool:
    """True for a histogram with the metric's buckets."""
    has_buckets = tuple(point.bounds) == metric.buckets and len(point.counts) == len(metric.buckets) + 1
    return has_buckets and min(point.counts) >= 0


def _is_supported(known: Metric, reading: Reading) -> bool:
    """True for the kind of data that the metric has, in pieces that can be added up."""
    kinds = {Kind.COUNTER: "sum", Kind.GAUGE: "gauge", Kind.HISTOGRAM: "histogram"}
    return reading.kind == kinds[known.kind] and (reading.is_delta or known.kind is Kind.GAUGE)
