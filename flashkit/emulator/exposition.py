"""The platform's figures and its workers' reports as Prometheus reads them, at `GET /metrics`.

Everything is worked out when it is asked for: between two scrapes this costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector, CollectorRegistry

from flashkit.emulator.metrics import EndpointFigures, Metrics
from flashkit.emulator.reports import Reports, Values
from flashkit.protocol import JobStatus
from flashkit.telemetry.metrics import BY_NAME, METRICS, Histogram, Kind, Metric, Source

Figures = Mapping[str, Mapping[str, Any]]
Series = Iterable[tuple[str, Values, float | Histogram]]
"""Endpoint, values of the labels, value."""
Own = Iterable[tuple[Values, float | Histogram | None]]
"""Values of the labels, value; None for one that is not known."""
Read = Callable[[Mapping[str, Any], EndpointFigures], Own]

_INFINITY: Final = "+Inf"
_FINAL: Final = tuple(status for status in JobStatus if status.is_final)
_STATES: Final = BY_NAME["flashkit.workers"].labels[0].values or ()


def _one(*path: str) -> Read:
    """Return what reads the figure at this place, for a metric without labels."""

    def read(figures: Mapping[str, Any], counted: EndpointFigures) -> Own:
        return [((), figures[path[0]][path[1]])]

    return read


def _requests(figures: Mapping[str, Any], counted: EndpointFigures) -> Own:
    done, failed = counted.requests["done"], counted.requests["failed"]
    return [(("ok",), done), (("error",), failed)] if done + failed else []


_READERS: Final[Mapping[str, Read]] = {
    "flashkit.queue.depth": _one("jobs", "inQueue"),
    "flashkit.jobs.running": _one("jobs", "inProgress"),
    "flashkit.jobs": lambda _, counted: [((status.value,), counted.statuses[status]) for status in _FINAL],
    "flashkit.requests": _requests,
    "flashkit.job.queue.delay": lambda _, counted: [((), counted.delays)],
    "flashkit.job.execution.duration": lambda _, counted: [((), counted.executions)],
    "flashkit.cold_start.duration": lambda _, counted: [((), counted.starts)],
    "flashkit.job.tokens": lambda _, counted: [
        (("input",), counted.prompt_tokens),
        (("output",), counted.completion_tokens),
    ],
    "flashkit.workers": lambda figures, _: [((state,), figures["workers"].get(state, 0)) for state in _STATES],
    "flashkit.workers.limit": lambda figures, _: [((bound,), number) for bound, number in figures["bounds"].items()],
    "flashkit.cost.usd_per_hour": _one("cost", "usd_per_hour"),
    "flashkit.cost.usd": _one("cost", "usd"),
}
"""How each metric of an endpoint is read from what the platform tells and what was counted."""


class Exposition(NamedTuple):
    """All metrics as text."""

    content_type: str
    body: bytes


class PlatformCollector(Collector):
    """Gives Prometheus's client what there is at this moment."""

    def __init__(self, metrics: Metrics, reports: Reports) -> None:
        self._metrics = metrics
        self._reports = reports

    def collect(self) -> Iterator[Family]:
        """Yield every metric that has a series."""
        figures = self._metrics.describe()
        for metric in METRICS:
            series = list(self._reported(metric) if metric.source is Source.WORKER else self._own(metric, figures))
            if series:
                yield _family(metric, series)

    def _reported(self, metric: Metric) -> Series:
        match metric.kind:
            case Kind.COUNTER:
                return self._reports.counters(metric)
            case Kind.GAUGE:
                return self._reports.gauges(metric)
        return self._reports.histograms(metric)

    def _own(self, metric: Metric, figures: Figures) -> Series:
        if metric.name == "flashkit.reports.dropped":
            yield from (("", (reason,), number) for reason, number in self._reports.dropped.items() if number)
            return
        read = _READERS[metric.name]
        for endpoint, each in figures.items():
            for values, number in read(each, self._metrics.figures(endpoint)):
                if number is not None:
                    yield endpoint, values, number


def _family(metric: Metric, series: Sequence[tuple[str, Values, float | Histogram]]) -> Family:
    labels = ["endpoint", *(label.prometheus_name for label in metric.labels)]
    name = metric.prometheus_name
    if metric.kind is Kind.HISTOGRAM:
        histograms = HistogramMetricFamily(name, metric.words, labels=labels)
        for endpoint, values, histogram in series:
            if isinstance(histogram, Histogram):
                histograms.add_metric([endpoint, *values], buckets=_cumulated(histogram), sum_value=histogram.sum)
        return histograms
    family = (CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily)(
        name, metric.words, labels=labels
    )
    for endpoint, values, number in series:
        if not isinstance(number, Histogram):
            family.add_metric([endpoint, *values], number)
    return family


def _cumulated(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*(repr(float(bound)) for bound in histogram.bounds), _INFINITY]
    total, buckets = 0, []
    for bound, count in zip(bounds, histogram.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets


def expose(metrics: Metrics, reports: Reports, *, accept: str) -> Exposition:
    """Return all metrics in the format that the reader asks for: OpenMetrics, or Prometheus's own."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(PlatformCollector(metrics, reports))
    encode, content_type = choose_encoder(accept)
    return Exposition(content_type, encode(registry))
