"""Metrics on their way to a receiver that takes them, refuses them, is slow, or is not there: no job waits for it."""

from __future__ import annotations

import gzip
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flashkit.emulator.otlp_metrics import decode_report
from flashkit.emulator.reports import Reports
from flashkit.errors import ConfigurationError
from flashkit.settings import Settings
from flashkit.telemetry.exporter import Delivery
from flashkit.telemetry.metrics import BY_NAME
from flashkit.telemetry.metrics_export import JsonMetricsSender, MetricsReporter, start_metrics
from flashkit.telemetry.metrics_worker import WorkerMetrics, watch_gauge, watch_lost_spans
from flashkit.telemetry.setup import start_traces
from flashkit.telemetry.spans import Op, enter_job, recorder, span

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def nothing_left():
    assert recorder() is None
    yield
    from flashkit.telemetry.spans import use_recorder

    use_recorder(None)


@dataclass
class Receiver:
    """A collector: a real HTTP server that keeps what it gets."""

    status: int = 200
    is_open: threading.Event = field(default_factory=threading.Event)
    """While it is not set, requests hang."""
    bodies: list = field(default_factory=list)
    headers: list = field(default_factory=list)
    is_stopped: bool = False
    came: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def start(self, port=0):
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                if receiver.is_stopped:
                    self.close_connection = True
                    return
                receiver.came.release()
                receiver.is_open.wait(20)
                receiver.headers.append({name.lower(): value for name, value in self.headers.items()})
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.bodies.append((body, self.headers["content-type"]))
                self.send_response(receiver.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

        self.server = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self):
        self.is_stopped = True
        self.is_open.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def reports(self):
        return [decode_report(body, content_type=kind, encoding="") for body, kind in list(self.bodies)]

    def readings(self):
        return [reading for report in self.reports for each in report for reading in each.readings]

    def counted(self, name):
        return [sum(point.number for point in each.points) for each in self.readings() if each.name == name]


@pytest.fixture
def receiver():
    made = Receiver().start()
    made.is_open.set()
    yield made
    made.stop()


def sender_to(receiver, **options):
    return JsonMetricsSender(f"{receiver.url}/v1/metrics", endpoint="agent", service="agent", worker_id="w1", **options)


def reporter_to(sender, metrics):
    """A reporter that sends when it is told to."""
    return MetricsReporter(metrics, sender, interval_s=3_600.0)


def work(metrics, count=1):
    for _ in range(count):
        metrics.add("flashkit.tool.calls", 1, {"tool": "search", "outcome": "ok"})


def run_step():
    with enter_job(Op.JOB, "agent", {}, job_id=None, traceparent=None), span(Op.STEP, "search"):
        pass


def test_the_platform_gets_what_has_come_since_and_adds_it_up(receiver):
    metrics = WorkerMetrics()
    reporter = reporter_to(sender_to(receiver), metrics)
    work(metrics, 3)
    with_histogram = metrics.totals()
    assert not with_histogram.is_empty
    reporter.flush()
    work(metrics, 2)
    reporter.flush()
    reporter.flush()
    reporter.close()
    assert receiver.counted("flashkit.tool.calls") == [3, 2]
    reports = Reports(lambda: ["agent"], clock=lambda: 0.0)
    assert [reports.take(report) for report in receiver.reports] == [0, 0]
    assert list(reports.counters(BY_NAME["flashkit.tool.calls"])) == [("agent", ("search", "ok"), 5.0)]


def test_gauges_that_do_not_change_are_not_told_again_and_again(receiver):
    metrics, values = WorkerMetrics(), [2.0]
    watch_gauge("flashkit.engine.requests", lambda: values[0])
    reporter = reporter_to(sender_to(receiver), metrics)
    for _ in range(3):
        reporter.flush()
    values[0] = 3.0
    reporter.flush()
    reporter.close()
    watch_gauge("flashkit.engine.requests", lambda: None)
    assert len(receiver.reports) == 2


def test_spans_that_were_dropped_are_told(receiver):
    settings = Settings(traces_url="http://127.0.0.1:9/", metrics_url=f"{receiver.url}/v1/metrics")
    stop_traces = start_traces(settings, service="agent")
    stop = start_metrics(settings, endpoint="agent")
    recorder()._sink._all[0].dropped = 5
    run_step()
    stop()
    stop_traces()
    watch_lost_spans(lambda: 0)
    assert receiver.counted("flashkit.telemetry.dropped") == [5]


def test_what_was_not_taken_comes_with_the_next_report(receiver):
    metrics = WorkerMetrics()
    reporter = reporter_to(sender_to(receiver), metrics)
    work(metrics)
    receiver.status = 503
    reporter.flush()
    work(metrics)
    receiver.status = 200
    reporter.flush()
    reporter.close()
    assert receiver.counted("flashkit.tool.calls") == [1, 2]
    assert metrics.totals().counters.get(("flashkit.telemetry.dropped", ("metrics",))) is None


def test_what_is_refused_is_lost_and_counted(receiver, caplog):
    metrics = WorkerMetrics()
    reporter = reporter_to(sender_to(receiver), metrics)
    work(metrics)
    receiver.status = 400
    reporter.flush()
    receiver.status = 200
    reporter.flush()
    reporter.close()
    assert receiver.counted("flashkit.tool.calls") == [1]
    assert receiver.counted("flashkit.telemetry.dropped") == [1]
    assert caplog.text.count("does not take metrics now; jobs go on") == 1


def test_a_receiver_that_is_not_there_loses_nothing_that_it_gets_later(caplog):
    receiver = Receiver().start()
    receiver.is_open.set()
    port = receiver.server.server_port
    metrics = WorkerMetrics()
    reporter = reporter_to(sender_to(receiver), metrics)
    work(metrics)
    reporter.flush()
    receiver.stop()
    for _ in range(3):
        work(metrics)
        reporter.flush()
    again = Receiver().start(port)
    again.is_open.set()
    reporter.flush()
    reporter.close()
    again.stop()
    assert receiver.counted("flashkit.tool.calls") + again.counted("flashkit.tool.calls") == [1, 3]
    assert caplog.text.count("jobs go on") == 1


def test_a_receiver_that_hangs_holds_nobody_up(receiver):
    """Everything here happens while the receiver has a request and does not answer it."""
    receiver.is_open.clear()
    metrics = WorkerMetrics()
    reporter = reporter_to(sender_to(receiver), metrics)
    work(metrics)
    reporter.flush(timeout_s=0.01)
    assert receiver.came.acquire(timeout=10)
    work(metrics, 1_000)
    assert metrics.totals().counters["flashkit.tool.calls", ("search", "ok")] == 1_001
    reporter.flush(timeout_s=0.01)
    assert receiver.reports == []
    reporter.close(timeout_s=0.01)
    receiver.is_open.set()
    reporter.close(timeout_s=10)
    assert sum(receiver.counted("flashkit.tool.calls")) == 1_001


def test_a_sender_that_breaks_is_told_of_once_and_tried_again(caplog):
    class Broken:
        name = "the receiver"
        takes_deltas = True
        tries = 0

        def send(self, totals):
            self.tries += 1
            if self.tries < 3:
                raise ZeroDivisionError
            return Delivery.SENT

        def close(self):
            pass

    metrics, sender = WorkerMetrics(), Broken()
    reporter = reporter_to(sender, metrics)
    work(metrics)
    for _ in range(3):
        reporter.flush()
    reporter.close()
    assert sender.tries == 3
    assert caplog.text.count("does not take metrics now") == 1
    assert "ZeroDivisionError" in caplog.text


def test_a_collector_gets_totals_by_opentelemetrys_own_exporter(receiver, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=se%20cret")
    stop = start_metrics(Settings.from_environment(), endpoint="agent")
    run_step()
    recorder().flush()
    run_step()
    stop()
    assert receiver.counted("flashkit.tool.calls") == [1, 2]
    assert receiver.headers[0]["x-key"] == "se cret"
    assert receiver.headers[0]["content-type"] == "application/x-protobuf"
    [report] = receiver.reports[0]
    assert report.endpoint == "agent"
    readings = {reading.name: reading for reading in report.readings}
    assert not readings["flashkit.session.step.duration"].is_delta
    point = readings["flashkit.session.step.duration"].points[0]
    assert tuple(point.bounds) == BY_NAME["flashkit.session.step.duration"].buckets
    assert point.labels == {"endpoint": "agent", "kind": "step", "outcome": "ok"}


def test_a_collector_gets_json_where_opentelemetry_is_not_installed(receiver, monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "flashkit.telemetry.metrics_sdk", None)
    settings = Settings(
        otlp_metrics_endpoint=f"{receiver.url}/v1/metrics", otlp_headers={"x-key": "1"}, sends_metric_deltas=True
    )
    stop = start_metrics(settings, endpoint="agent")
    for _ in range(2):
        run_step()
        recorder().flush()
    stop()
    assert receiver.counted("flashkit.tool.calls") == [1, 1]
    assert receiver.headers[0]["x-key"] == "1"
    assert "gets metrics in JSON" in caplog.text


def test_without_a_receiver_nobody_counts_and_no_span_is_made():
    stop = start_metrics(Settings(), endpoint="agent")
    assert recorder() is None
    assert not [thread for thread in threading.enumerate() if thread.name == "flashkit metrics"]
    stop()


@pytest.mark.parametrize(
    ("environ", "endpoint"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"}, "http://c:4318/v1/metrics"),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://m/own"}, "http://m/own"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_METRICS_EXPORTER": "none"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "True"}, None),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318"}, None),
    ],
)
def test_the_collector_is_where_opentelemetrys_variables_say(environ, endpoint, tmp_path):
    settings = Settings.from_environment(environ, folder=tmp_path)
    assert settings.otlp_metrics_endpoint == endpoint
    assert settings.has_metrics is (endpoint is not None)


def test_how_and_how_often_is_set_by_opentelemetrys_variables_too(tmp_path):
    environ = {
        "OTEL_METRIC_EXPORT_INTERVAL": "2500",
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "Delta",
        "OTEL_EXPORTER_OTLP_HEADERS": "a=1,b=x%2Cy",
        "OTEL_EXPORTER_OTLP_METRICS_HEADERS": "a=2",
        "FLASHKIT_METRICS_URL": "http://127.0.0.1:1/v1/metrics",
    }
    settings = Settings.from_environment(environ, folder=tmp_path)
    assert settings.metrics_interval_seconds == 2.5
    assert settings.sends_metric_deltas
    assert settings.otlp_headers == {"a": "2", "b": "x,y"}
    assert settings.has_metrics
    assert "x,y" not in repr(settings)
    for wrong in ("soon", "-1", "nan", "1"):
        with pytest.raises(ConfigurationError, match="OTEL_METRIC_EXPORT_INTERVAL"):
            Settings.from_environment({"OTEL_METRIC_EXPORT_INTERVAL": wrong}, folder=tmp_path)
