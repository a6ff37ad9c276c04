"""Brings a worker's metrics to whoever wants them, from threads of their own: a job never waits for it.

What could not be sent is not lost while the worker lives: the next report has it too. A receiver that refuses a report
(as no collector of metrics, say) has lost it, which is counted; when a worker ends, it tries for two seconds more.

`flashkit dev` gets what has come since the last report, as OTLP in JSON. A collector gets totals, or what has come if
OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=delta, by OpenTelemetry's own exporter where that is installed. It is
imported by the thread that sends, so that no start waits for it.
"""

from __future__ import annotations

import atexit
import http.client
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from flashkit.settings import Settings
from flashkit.telemetry.exporter import Delivery
from flashkit.telemetry.metrics import BY_NAME, Histogram, Kind
from flashkit.telemetry.metrics_worker import Key, Totals, WorkerMetrics
from flashkit.telemetry.spans import observe

log = logging.getLogger(__name__)

PLATFORM_SECONDS: Final = 1.0
"""How often the local platform gets a report, while there is something to tell."""
GAUGE_SECONDS: Final = 30.0
"""How often gauges are told that do not change: the platform forgets those of workers that are long silent."""
FLUSH_SECONDS: Final = 2.0
_TIMEOUT_SECONDS: Final = 5.0
_LATER: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_DELTA, _CUMULATIVE = 1, 2


class MetricsSender(Protocol):
    """The way to a receiver. Used by one thread."""

    name: str
    """For people."""
    takes_deltas: bool
    """It wants what has come since the last report, not totals."""

    def send(self, totals: Totals) -> Delivery:
        """Send figures; may take its time."""

    def close(self) -> None:
        """Let go of the connection."""


class MetricsReporter:
    """Sends a worker's metrics to one receiver, again and again."""

    def __init__(self, metrics: WorkerMetrics, sender: MetricsSender, *, interval_s: float) -> None:
        self._metrics = metrics
        self._sender = sender
        self._interval_s = interval_s
        self._told: Totals | None = None
        """What the receiver knows."""
        self._wake = threading.Event()
        self._is_closing = False
        self._flushed = threading.Event()
        self._has_complained = False
        self._thread = threading.Thread(target=self._run, name="flashkit metrics", daemon=True)
        self._thread.start()

    def flush(self, timeout_s: float = FLUSH_SECONDS) -> None:
        """Send what there is now, and wait for that as long as said at most."""
        self._flushed.clear()
        self._wake.set()
        self._flushed.wait(timeout_s)

    def close(self, timeout_s: float = FLUSH_SECONDS) -> None:
        """Send what there is, for so long at most, and end the thread."""
        self._is_closing = True
        self._wake.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            is_last = self._is_closing
            try:
                self._report()
            except Exception:  # noqa: BLE001 - the thread's boundary: the next report may do better, and says all
                self._complain(is_bug=True)
            self._flushed.set()
        self._sender.close()

    def _report(self) -> None:
        totals = self._metrics.totals()
        told = totals.since(self._told) if self._sender.takes_deltas and self._told is not None else totals
        if told.is_empty or (self._sender.takes_deltas and not self._is_news(told)):
            return
        delivery = self._sender.send(told)
        if delivery is Delivery.LATER:
            self._complain()
            return
        self._told = totals
        if delivery is Delivery.REFUSED:
            self._metrics.add("flashkit.telemetry.dropped", 1, {"signal": "metrics"})
            self._complain()

    def _is_news(self, told: Totals) -> bool:
        """True unless these are the gauges that the receiver has had lately."""
        if self._told is None or told.counters or told.histograms:
            return True
        return told.gauges != self._told.gauges or told.at_ns - self._told.at_ns > GAUGE_SECONDS * 1e9

    def _complain(self, *, is_bug: bool = False) -> None:
        if not self._has_complained:
            self._has_complained = True
            log.warning("%s does not take metrics now; jobs go on", self._sender.name, exc_info=is_bug)


class JsonMetricsSender:
    """Sends OTLP in JSON over one kept connection, with nothing but Python's own library."""

    def __init__(
        self,
        url: str,
        *,
        endpoint: str,
        service: str,
        worker_id: str,
        takes_deltas: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.name = url.partition("?")[0]
        self.takes_deltas = takes_deltas
        self._url = urlsplit(url)
        self._endpoint = endpoint
        self._resource = {"service.name": service, "service.instance.id": worker_id}
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        self._connection: http.client.HTTPConnection | None = None

    def send(self, totals: Totals) -> Delivery:
        """Send figures; a kept connection that was closed meanwhile is made anew once."""
        body = encode(totals, self._resource, endpoint=self._endpoint, is_delta=self.takes_deltas)
        while True:
            is_kept = self._connection is not None
            try:
                return self._post(body)
            except (OSError, http.client.HTTPException):
                self.close()
                if not is_kept:
                    return Delivery.LATER

    def _post(self, body: bytes) -> Delivery:
        connection = self._connection = self._connection or self._connect()
        path = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
        connection.request("POST", path, body, self._headers)
        response = connection.getresponse()
        response.read()
        if response.status < http.client.MULTIPLE_CHOICES:
            return Delivery.SENT
        return Delivery.LATER if response.status in _LATER else Delivery.REFUSED

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        return kind(self._url.hostname or "", self._url.port, timeout=_TIMEOUT_SECONDS)

    def close(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class CollectorMetricsSender:
    """Sends to a collector with OpenTelemetry's own exporter, which reads its variables itself."""

    def __init__(
        self, url: str, *, endpoint: str, service: str, worker_id: str, takes_deltas: bool, headers: Mapping[str, str]
    ) -> None:
        self.name = url
        self.takes_deltas = takes_deltas
        self._plain = JsonMetricsSender(
            url, endpoint=endpoint, service=service, worker_id=worker_id, takes_deltas=takes_deltas, headers=headers
        )
        self._endpoint, self._service, self._worker_id = endpoint, service, worker_id
        self._sender: Any = None

    def send(self, totals: Totals) -> Delivery:
        """Send figures."""
        if self._sender is None:
            self._sender = self._open()
        delivery: Delivery = self._sender.send(totals)
        return delivery

    def close(self) -> None:
        """Let go of the connection."""
        if self._sender is not None:
            self._sender.close()

    def _open(self) -> Any:
        try:
            from flashkit.telemetry.metrics_sdk import SdkMetricsExport
        except ModuleNotFoundError as exc:
            log.warning(
                "the module %s is not installed, so %s gets metrics in JSON; pip install 'flashkit-serverless[traces]'",
                exc.name,
                self.name,
            )
            return self._plain
        return SdkMetricsExport(
            endpoint=self._endpoint,
            service=self._service,
            worker_id=self._worker_id,
            is_delta=self.takes_deltas,
        )


def start_metrics(settings: Settings, *, endpoint: str) -> Callable[[], None]:
    """Count what this process does from now on, if the settings say where to send it; return what ends that."""
    senders = _senders(settings, endpoint)
    if not senders:
        return _nothing
    metrics = WorkerMetrics()
    reporters = [
        MetricsReporter(
            metrics,
            sender,
            interval_s=PLATFORM_SECONDS if isinstance(sender, JsonMetricsSender) else settings.metrics_interval_seconds,
        )
        for sender in senders
    ]

    def flush() -> None:
        for reporter in reporters:
            reporter.flush()

    stop_observing = observe(metrics.observe, flush=flush)

    def stop() -> None:
        atexit.unregister(stop)
        stop_observing()
        for reporter in reporters:
            reporter.close()

    atexit.register(stop)
    return stop


def _senders(settings: Settings, endpoint: str) -> list[MetricsSender]:
    worker_id, senders = settings.worker_id, list[MetricsSender]()
    if settings.metrics_url:
        senders.append(
            JsonMetricsSender(settings.metrics_url, endpoint=endpoint, service=endpoint, worker_id=worker_id)
        )
    if settings.otlp_metrics_endpoint:
        senders.append(
            CollectorMetricsSender(
                settings.otlp_metrics_endpoint,
                endpoint=endpoint,
                service=settings.otel_service or endpoint,
                worker_id=worker_id,
                takes_deltas=settings.sends_metric_deltas,
                headers=settings.otlp_headers,
            )
        )
    return senders


def _nothing() -> None:
    """End what was not begun."""


def encode(totals: Totals, resource: Mapping[str, str], *, endpoint: str, is_delta: bool) -> bytes:
    """Return the body of a request that tells of figures, in OTLP's JSON."""
    import orjson

    times = {"startTimeUnixNano": str(totals.began_ns), "timeUnixNano": str(totals.at_ns)}
    temporality = _DELTA if is_delta else _CUMULATIVE
    told: dict[str, dict[str, Any]] = {}

    def points_of(name: str) -> list[Any]:
        metric = BY_NAME[name]
        if name not in told:
            data: dict[str, Any] = {"dataPoints": []}
            if metric.kind is not Kind.GAUGE:
                data["aggregationTemporality"] = temporality
            if metric.kind is Kind.COUNTER:
                data["isMonotonic"] = True
            kind = "sum" if metric.kind is Kind.COUNTER else metric.kind.value
            told[name] = {"name": name, "unit": metric.unit, "description": metric.words, kind: data}
        return next(value["dataPoints"] for value in told[name].values() if isinstance(value, dict))

    for key, number in totals.counters.items():
        points_of(key[0]).append({"attributes": _attributes(key, endpoint), **times, "asDouble": number})
    for key, histogram in totals.histograms.items():
        points_of(key[0]).append({"attributes": _attributes(key, endpoint), **times, **_describe(histogram)})
    for name, value in totals.gauges.items():
        points_of(name).append({"attributes": _attributes((name, ()), endpoint), **times, "asDouble": value})
    scope = {"scope": {"name": "flashkit"}, "metrics": list(told.values())}
    attributes = [_attribute(name, value) for name, value in resource.items()]
    return orjson.dumps({"resourceMetrics": [{"resource": {"attributes": attributes}, "scopeMetrics": [scope]}]})


def labels_of(key: Key, endpoint: str) -> dict[str, str]:
    """Return the attributes of a series; those without a value are left out."""
    name, values = key
    named = zip(BY_NAME[name].label_names, values, strict=True) if values else ()
    return {"endpoint": endpoint, **{label: value for label, value in named if value}}


def _attributes(key: Key, endpoint: str) -> list[dict[str, Any]]:
    return [_attribute(name, value) for name, value in labels_of(key, endpoint).items()]


def _attribute(name: str, value: str) -> dict[str, Any]:
    return {"key": name, "value": {"stringValue": value}}


def _describe(histogram: Histogram) -> dict[str, Any]:
    bounds: Sequence[float] = histogram.bounds
    return {
        "count": str(histogram.count),
        "sum": histogram.sum,
        "bucketCounts": [str(count) for count in histogram.counts],
        "explicitBounds": list(bounds),
    }
