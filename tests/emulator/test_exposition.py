"""`GET /metrics`: the platform's own figures and those of its workers, as Prometheus reads them."""

from __future__ import annotations

import os
import shutil
import subprocess

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from flashkit.emulator.events import RequestEvent, WorkerEvent
from flashkit.emulator.exposition import expose
from flashkit.emulator.platform import JobRequest
from flashkit.emulator.reports import Reports
from flashkit.emulator.server import Emulator
from flashkit.protocol import JobStatus
from flashkit.telemetry.metrics import METRICS, sample_names
from tests.emulator.test_metrics import World as PlatformWorld
from tests.emulator.test_reports import Report

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class World(PlatformWorld):
    def __init__(self):
        super().__init__()
        self.reports = Reports(lambda: tuple(self.platform.specs), clock=lambda: self.now)

    def scrape(self):
        """Return every sample by name and labels."""
        text = expose(self.metrics, self.reports, accept="").body.decode()
        return {
            (sample.name, *(value for name, value in sorted(sample.labels.items()) if name != "endpoint")): sample.value
            for family in read_text(text)
            for sample in family.samples
        }


@pytest.fixture
def world():
    return World()


def test_jobs_are_counted_by_their_status_with_their_delays(world):
    world.platform.submit(world.now, "e", JobRequest(input=1), sync=False)
    world.end("a", delay=300, execution=2_000)
    world.end("b", JobStatus.FAILED, delay=30, execution=10)
    world.end("c", JobStatus.TIMED_OUT)
    samples = world.scrape()
    assert samples["flashkit_queue_depth",] == 1
    assert samples["flashkit_jobs_total", "COMPLETED"] == 1
    assert samples["flashkit_jobs_total", "FAILED"] == 1
    assert samples["flashkit_jobs_total", "TIMED_OUT"] == 1
    assert samples["flashkit_jobs_total", "CANCELLED"] == 0
    assert samples["flashkit_job_queue_delay_seconds_bucket", "0.25"] == 2
    assert samples["flashkit_job_queue_delay_seconds_bucket", "0.5"] == 3
    assert samples["flashkit_job_queue_delay_seconds_sum",] == pytest.approx(0.34)
    assert samples["flashkit_job_execution_duration_seconds_count",] == 3


def test_workers_starts_and_costs_are_told(world):
    for worker_id in ("a", "b"):
        world.tell(WorkerEvent("e", worker_id, "starting"))
    world.now += 3
    world.tell(WorkerEvent("e", "a", "ready"))
    world.tell(WorkerEvent("e", "b", "exited"))
    world.metrics.sample()
    samples = world.scrape()
    assert samples["flashkit_workers", "idle"] == 1
    assert samples["flashkit_workers_limit", "max"] == 3
    assert samples["flashkit_cold_start_duration_seconds_count",] == 1
    assert samples["flashkit_cold_start_duration_seconds_sum",] == 3
    assert samples["flashkit_cost_usd_per_hour",] == pytest.approx(0.00060 * 3600)
    assert samples["flashkit_cost_usd_total",] > 0


def test_a_frozen_worker_that_goes_on_for_a_job_is_a_start(world):
    world.tell(WorkerEvent("e", "w", "frozen"))
    world.tell(WorkerEvent("e", "w", "thawing"))
    world.now += 0.5
    world.end("a", JobStatus.IN_PROGRESS)
    assert world.scrape()["flashkit_cold_start_duration_seconds_sum",] == 0.5


def test_requests_of_load_balanced_endpoints_are_told_where_there_were_any(world):
    assert ("flashkit_requests_total", "ok") not in world.scrape()
    for status in (200, 502):
        world.tell(RequestEvent("e", "r", "GET", "/", status, "w", 5, 20, 1, 0, 0, None))
    samples = world.scrape()
    assert samples["flashkit_requests_total", "ok"] == samples["flashkit_requests_total", "error"] == 1


def test_what_workers_report_stands_beside_it(world):
    report = Report("e").count("flashkit.tool.calls", 2, tool="search", outcome="ok")
    report.gauge("flashkit.engine.kv_cache.usage", 0.87)
    counts = [0] * 14
    counts[0] = 1
    world.reports.take(report.histogram("gen_ai.server.time_to_first_token", counts, 0.004).request)
    world.reports.take(Report("stranger").count("flashkit.tool.calls", 1).request)
    samples = world.scrape()
    assert samples["flashkit_tool_calls_total", "ok", "search"] == 2
    assert samples["flashkit_engine_kv_cache_usage_ratio",] == 0.87
    assert samples["gen_ai_server_time_to_first_token_seconds_bucket", "", "+Inf"] == 1
    assert samples["flashkit_reports_dropped_total", "unknown_endpoint"] == 1


def test_hostile_values_do_not_break_the_text(world):
    world.reports.take(Report("e").count("flashkit.tool.calls", 2, tool='x"} 1\nfake{\\', outcome="ok").request)
    for accept, read in (("", read_text), (OPENMETRICS, read_openmetrics)):
        families = list(read(expose(world.metrics, world.reports, accept=accept).body.decode()))
        assert not [family for family in families if "fake" in family.name]


def test_names_are_of_prometheus_kind_with_units_and_no_label_holds_an_id():
    for metric in METRICS:
        name = metric.prometheus_name
        assert name.replace("_", "").isalnum()
        assert name.islower()
        assert name.endswith("_total") is (metric.kind == "counter")
        assert metric.unit != "s" or name.endswith("_seconds")
        for label in metric.labels:
            assert not label.prometheus_name.endswith(("_id", "job", "session", "worker"))


def test_every_sample_that_is_exported_is_of_the_list(world):
    world.metrics.sample()
    assert {name for name, *_ in world.scrape()} <= sample_names()


async def test_prometheus_scrapes_it_and_workers_report_over_http(tmp_path):
    async with Emulator((), state_dir=tmp_path, api_key="secret") as emulator, aiohttp.ClientSession() as session:
        headers = {"Authorization": "Bearer secret"}
        report = Report("stranger").count("flashkit.tool.calls", 1).body
        async with session.post(
            f"{emulator.url}/v1/metrics", data=report, headers={**headers, "content-type": "application/x-protobuf"}
        ) as answer:
            assert answer.status == 200
            assert b"flashkit_reports_dropped_total" in await answer.read()
        async with session.get(f"{emulator.url}/metrics", headers={**headers, "accept": OPENMETRICS}) as answer:
            assert answer.content_type == "application/openmetrics-text"
            text = await answer.text()
        [family] = [each for each in read_openmetrics(text) if each.name == "flashkit_reports_dropped"]
        assert family.samples[0].value == 1
        async with session.post(f"{emulator.url}/v1/metrics", data=b"\xff\xff", headers=headers) as answer:
            assert answer.status == 400
        for method, path in (("GET", "/metrics"), ("POST", "/v1/metrics")):
            async with session.request(method, f"{emulator.url}{path}") as answer:
                assert answer.status == 401
        foreign = {**headers, "origin": "http://localhost:1"}
        async with session.post(f"{emulator.url}/v1/metrics", data=report, headers=foreign) as answer:
            assert answer.status == 403


def test_prometheus_own_linter_has_nothing_to_say_of_the_names(world):
    found = shutil.which("promtool")
    if found is None:
        missing = "there is no promtool: install Debian's package prometheus, as scripts/setup does"
        pytest.fail(missing) if os.environ.get("FLASHKIT_REQUIRE_EVERYTHING") else pytest.skip(missing)
    report = Report("e").count("flashkit.tool.calls", 2, tool="search", outcome="ok")
    report.gauge("flashkit.engine.kv_cache.usage", 0.87).gauge("flashkit.engine.requests", 1)
    for metric in METRICS:
        if metric.kind == "histogram" and metric.source == "worker":
            report.histogram(metric.name, [1] * (len(metric.buckets) + 1), 1.0)
        elif metric.kind == "counter" and metric.source == "worker":
            report.count(metric.name, 1)
    world.reports.take(report.request)
    world.reports.take(Report("stranger").count("flashkit.tool.calls", 1).request)
    world.tell(RequestEvent("e", "r", "GET", "/", 200, "w", 5, 20, 1, 0, 0, None))
    text = expose(world.metrics, world.reports, accept="").body
    told = {family.name for family in read_text(text.decode())}
    assert told == {metric.prometheus_name.removesuffix("_total") for metric in METRICS}
    done = subprocess.run([found, "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
