"""What workers report by OTLP: added up for each endpoint, bounded, and never believed blindly."""

from __future__ import annotations

import gzip

import orjson
import pytest
from google.protobuf.json_format import MessageToJson
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE, AGGREGATION_TEMPORALITY_DELTA

from flashkit.emulator.otlp_metrics import REPORT_LIMIT_BYTES, decode_report, encode_answer
from flashkit.emulator.reports import Reports
from flashkit.errors import InputError
from flashkit.telemetry.metrics import BY_NAME, MOST_SERIES, OTHER

DELTA = AGGREGATION_TEMPORALITY_DELTA


def attribute(target, name, value):
    entry = target.add()
    entry.key = name
    entry.value.string_value = value


class Report:
    """A report of one worker, filled by tests."""

    def __init__(self, endpoint="agent", instance="w1"):
        self.message = ExportMetricsServiceRequest()
        group = self.message.resource_metrics.add()
        attribute(group.resource.attributes, "service.name", endpoint)
        attribute(group.resource.attributes, "service.instance.id", instance)
        self._metrics = group.scope_metrics.add().metrics

    @property
    def body(self):
        return self.message.SerializeToString()

    @property
    def request(self):
        return decode_report(self.body, content_type="application/x-protobuf", encoding="")

    def count(self, name, number, *, temporality=DELTA, **labels):
        metric = self._metrics.add()
        metric.name = name
        metric.sum.aggregation_temporality = temporality
        return self._label(metric.sum.data_points.add(as_double=number), labels)

    def gauge(self, name, number, **labels):
        metric = self._metrics.add()
        metric.name = name
        return self._label(metric.gauge.data_points.add(as_double=number), labels)

    def histogram(self, name, counts, total, *, bounds=None, temporality=DELTA, **labels):
        metric = self._metrics.add()
        metric.name = name
        metric.histogram.aggregation_temporality = temporality
        point = metric.histogram.data_points.add(sum=total, count=sum(counts), bucket_counts=counts)
        point.explicit_bounds.extend(BY_NAME[name].buckets if bounds is None else bounds)
        return self._label(point, labels)

    def _label(self, point, labels):
        for name, value in labels.items():
            attribute(point.attributes, name, value)
        return self


class World:
    def __init__(self):
        self.now = 1_000.0
        self.endpoints = ["agent", "llm"]
        self.reports = Reports(lambda: self.endpoints, clock=lambda: self.now)

    def counted(self, name):
        return sorted(self.reports.counters(BY_NAME[name]))


@pytest.fixture
def world():
    return World()


def test_counts_of_several_workers_add_up(world):
    for instance in ("w1", "w2"):
        assert (
            world.reports.take(
                Report(instance=instance).count("flashkit.tool.calls", 3, tool="search", outcome="ok").request
            )
            == 0
        )
    assert world.counted("flashkit.tool.calls") == [("agent", ("search", "ok"), 6)]


def test_histograms_of_several_reports_add_up(world):
    counts = [0] * 14
    counts[3] = 2
    for _ in range(2):
        world.reports.take(Report("llm").histogram("gen_ai.server.time_to_first_token", counts, 0.15).request)
    [(endpoint, values, histogram)] = world.reports.histograms(BY_NAME["gen_ai.server.time_to_first_token"])
    assert (endpoint, values, histogram.count, histogram.sum) == ("llm", ("",), 4, 0.3)


def test_a_gauge_is_the_fullest_or_the_sum_of_the_workers_that_reported_lately(world):
    for instance, usage in (("w1", 0.9), ("w2", 0.4)):
        report = Report("llm", instance).gauge("flashkit.engine.kv_cache.usage", usage)
        world.reports.take(report.gauge("flashkit.engine.requests", 3).request)
    assert world.reports.gauge("flashkit.engine.kv_cache.usage", "llm") == 0.9
    assert world.reports.gauge("flashkit.engine.requests", "llm") == 6
    assert world.reports.gauge("flashkit.engine.requests", "agent") is None
    world.now += 60
    world.reports.take(Report("llm", "w2").gauge("flashkit.engine.kv_cache.usage", 0.5).request)
    world.now += 61
    assert world.reports.gauge("flashkit.engine.kv_cache.usage", "llm") == 0.5
    world.now += 120
    assert world.reports.gauge("flashkit.engine.kv_cache.usage", "llm") is None


def test_gauges_of_thousands_of_workers_take_bounded_memory(world):
    for number in range(1_200):
        world.reports.take(Report("llm", f"w{number}").gauge("flashkit.engine.requests", 1).request)
    assert world.reports.gauge("flashkit.engine.requests", "llm") == 1_000


@pytest.mark.parametrize(
    ("report", "why"),
    [
        (Report("stranger").count("flashkit.tool.calls", 1), "unknown_endpoint"),
        (Report().count("my.own.metric", 1), "unknown_metric"),
        (Report().gauge("flashkit.queue.depth", 7), "unknown_metric"),
        (Report().gauge("flashkit.tool.calls", 1), "unsupported"),
        (Report().count("flashkit.tool.calls", 1, temporality=AGGREGATION_TEMPORALITY_CUMULATIVE), "unsupported"),
        (Report().histogram("gen_ai.server.time_to_first_token", [1, 0], 1.0, bounds=[3.0]), "unsupported"),
        (Report().histogram("gen_ai.server.time_to_first_token", [], 1.0), "unsupported"),
    ],
    ids=["endpoint", "metric", "the platform's own", "other kind", "cumulative", "other buckets", "no bucket"],
)
def test_what_cannot_be_added_up_is_refused_and_counted(world, report, why):
    assert world.reports.take(report.request) == 1
    assert +world.reports.dropped == {why: 1}
    assert not world.counted("flashkit.tool.calls")


def test_a_negative_count_takes_nothing_away(world):
    world.reports.take(Report().count("flashkit.tool.calls", 2, tool="t").request)
    world.reports.take(Report().count("flashkit.tool.calls", -5, tool="t").request)
    assert world.counted("flashkit.tool.calls") == [("agent", ("t", ""), 2)]


def test_hostile_labels_are_cut_cleaned_and_folded_into_one(world):
    hostile = 'a"\n} evil{x="' + "y" * 5_000
    world.reports.take(Report().count("flashkit.tool.calls", 1, tool=hostile, outcome="no such outcome").request)
    [(_, (tool, outcome), _)] = world.counted("flashkit.tool.calls")
    assert len(tool) <= 80
    assert "\n" not in tool
    assert outcome == OTHER
    for number in range(3 * MOST_SERIES):
        world.reports.take(Report().count("flashkit.tool.calls", 1, tool=f"job-{number}", outcome="ok").request)
    counted = world.counted("flashkit.tool.calls")
    assert len(counted) == MOST_SERIES + 1
    assert ("agent", (OTHER, "ok"), 2 * MOST_SERIES + 1) in counted
    assert world.reports.dropped["too_many_series"] == 2 * MOST_SERIES + 1


def test_labels_that_a_metric_does_not_have_are_left_out(world):
    world.reports.take(Report().count("flashkit.session.cost.usd", 0.5, session="s1").request)
    world.reports.take(Report().count("flashkit.session.cost.usd", 0.5, session="s2").request)
    assert world.counted("flashkit.session.cost.usd") == [("agent", (), 1.0)]


def test_figures_of_a_removed_endpoint_are_gone(world):
    world.reports.take(Report().count("flashkit.tool.calls", 1).request)
    world.endpoints = ["llm"]
    world.reports.take(Report("llm").count("flashkit.tool.calls", 1).request)
    assert [endpoint for endpoint, *_ in world.counted("flashkit.tool.calls")] == ["llm"]


def test_a_report_is_read_as_protobuf_or_json_packed_or_not():
    report = Report().count("flashkit.tool.calls", 1.5, tool="a").gauge("flashkit.engine.requests", 2)
    report.histogram("gen_ai.server.time_to_first_token", [1] * 14, 2.5)
    report.count("flashkit.session.turns", 1, temporality=AGGREGATION_TEMPORALITY_CUMULATIVE)
    report.message.resource_metrics[0].scope_metrics[0].metrics.add(name="odd").summary.data_points.add()
    report.message.resource_metrics[0].scope_metrics[0].metrics.add(name="none")
    text = MessageToJson(report.message).encode()
    read = report.request
    assert [reading.kind for reading in read[0].readings] == ["sum", "gauge", "histogram", "sum", "", ""]
    assert [len(reading.points) for reading in read[0].readings] == [1, 1, 1, 1, 1, 0]
    packed = gzip.compress(report.body)
    assert decode_report(packed, content_type="application/x-protobuf", encoding="gzip") == read
    assert decode_report(text, content_type="application/json; charset=utf-8", encoding="") == read


def test_numbers_of_json_may_be_whole_and_attributes_of_any_kind():
    attributes = [
        {"key": "tool", "value": {"intValue": "7"}},
        {"key": "outcome"},
        {"key": "l", "value": {"arrayValue": {}}},
    ]
    point = {"asInt": "3", "attributes": attributes}
    metric = {"name": "flashkit.tool.calls", "sum": {"aggregationTemporality": 1, "dataPoints": [point]}}
    body = orjson.dumps({"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]})
    [report] = decode_report(body, content_type="application/json", encoding="")
    assert report.endpoint == report.instance == ""
    assert report.readings[0].points[0].number == 3.0
    assert report.readings[0].points[0].labels == {"tool": "7", "outcome": "", "l": {}}


@pytest.mark.parametrize(
    ("body", "content_type", "encoding"),
    [
        (b"\xff\xff nonsense", "application/x-protobuf", ""),
        (b"{", "application/json", ""),
        (b"\xff", "application/json", ""),
        (b'{"resourceMetrics": 3}', "application/json", ""),
        (b'{"resourceMetrics":' + b"[" * 100_000, "application/json", ""),
        (b"[]", "application/json", ""),
        (b'{"resourceMetrics": [3]}', "application/json", ""),
        (b'{"resourceMetrics": [{"resource": {"attributes": [{}]}}]}', "application/json", ""),
        (b"not gzip", "application/x-protobuf", "gzip"),
        (gzip.compress(b"whole")[:-9], "application/x-protobuf", "gzip"),
        (gzip.compress(bytes(REPORT_LIMIT_BYTES + 1)), "application/x-protobuf", "gzip"),
    ],
    ids=["protobuf", "json", "utf-8", "shape", "deep", "list", "number", "no key", "gzip", "cut", "bomb"],
)
def test_what_is_no_report_is_refused_with_what_would_be(body, content_type, encoding):
    with pytest.raises(InputError):
        decode_report(body, content_type=content_type, encoding=encoding)


def test_negative_counts_of_a_histogram_take_nothing_away(world):
    point = {"sum": 1.0, "bucketCounts": ["-1", *["0"] * 13]}
    point["explicitBounds"] = list(BY_NAME["gen_ai.server.time_to_first_token"].buckets)
    histogram = {"aggregationTemporality": 1, "dataPoints": [point]}
    metric = {"name": "gen_ai.server.time_to_first_token", "histogram": histogram}
    service = {"key": "service.name", "value": {"stringValue": "llm"}}
    group = {"resource": {"attributes": [service]}, "scopeMetrics": [{"metrics": [metric]}]}
    body = orjson.dumps({"resourceMetrics": [group]})
    assert world.reports.take(decode_report(body, content_type="application/json", encoding="")) == 1
    assert not list(world.reports.histograms(BY_NAME["gen_ai.server.time_to_first_token"]))


def test_the_sender_is_told_how_much_was_of_no_use():
    answer = ExportMetricsServiceResponse.FromString(encode_answer(3))
    assert answer.partial_success.rejected_data_points == 3
    assert encode_answer(0) == b""
