"""What the platform takes in, and what it adds of its own: waits, attempts, and what ended a job."""

import gzip
from types import SimpleNamespace

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from flashkit.emulator.admission import Admission
from flashkit.emulator.events import JobEvent
from flashkit.emulator.recorder import Recorder
from flashkit.emulator.traces import Traces, traces_routes
from flashkit.errors import ErrorReport, StoreUnavailable
from flashkit.protocol import JobStatus
from flashkit.telemetry.otlp import encode
from flashkit.telemetry.propagation import trace_id_of_job
from flashkit.telemetry.store import open_traces
from tests.telemetry.records import TRACE, job, record

CALLED = {"_flashkit": {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}}
"""The input of a job that another one made."""


@pytest.fixture
def clock():
    return SimpleNamespace(now=1_800_000_000.0)


@pytest.fixture
def recorder(clock):
    return Recorder(clock=lambda: clock.now)


@pytest.fixture
def store(tmp_path):
    return open_traces(f"sqlite:///{tmp_path}/traces.db")


def event(status, *, attempt=1, worker="w1", error=None, job_id="job-1", cold_start_ms=None):
    return JobEvent("agent", job_id, status, attempt, worker, 0, None, cold_start_ms, error, 1, 1)


async def tell(traces, recorder, clock, *steps):
    for seconds, what in steps:
        clock.now += seconds
        recorder.record(what)
        traces.notice(what)


async def test_each_wait_and_the_end_of_a_job_are_told(store, recorder, clock):
    traces = Traces(store, recorder, input_of=lambda *_: CALLED)
    died = ErrorReport("worker_died", "worker w1 died", type="PlatformError")
    await tell(
        traces, recorder, clock,
        (0, event(JobStatus.IN_QUEUE, attempt=0, worker=None)),
        (2, event(JobStatus.IN_PROGRESS, cold_start_ms=1_500)),
        (3, event(JobStatus.IN_QUEUE, worker=None, error=died)),
        (1, event(JobStatus.IN_PROGRESS, attempt=2, worker="w2")),
    )  # fmt: skip
    await traces.take(lambda: [job("a", 2_000, None), job("b", 6_000, None, worker="w2")])
    await traces._tell()
    trace = await traces.find("job-1")
    rows = [
        (row["depth"], row["op"], row["duration_s"]) for row in trace["spans"] if row["op"] in ("platform", "queue")
    ]
    assert rows[1:] == [(1, "queue", pytest.approx(2.0)), (1, "queue", pytest.approx(1.0))]
    assert trace["spans"][0]["is_open"]
    await tell(traces, recorder, clock, (4, event(JobStatus.TIMED_OUT, attempt=2, worker="w2")))
    await traces._tell()
    trace = await traces.find("job-1")
    assert trace["spans"][0]["attributes"]["flashkit.job.attempts"] == 2
    assert trace["spans"][0]["duration_s"] == pytest.approx(10.0)
    assert "execution timeout" in trace["spans"][0]["error"]
    assert [row["is_cut_off"] for row in trace["spans"] if row["op"] == "job"] == [True, True]
    await traces._tell()
    await traces.close()


async def test_a_job_that_was_killed_before_its_worker_said_a_word_has_a_trace_too(store, recorder, clock):
    traces = Traces(store, recorder, input_of=lambda endpoint, job_id: CALLED if job_id == "called" else {})
    for job_id in ("called", "job-1"):
        await tell(
            traces, recorder, clock,
            (0, event(JobStatus.IN_QUEUE, worker=None, job_id=job_id)),
            (1, event(JobStatus.IN_PROGRESS, job_id=job_id)),
            (9, event(JobStatus.TIMED_OUT, job_id=job_id)),
        )  # fmt: skip
    traces.open()
    await traces.close()
    reopened = open_traces(f"sqlite:///{store._database._file}")
    assert reopened.find("job-1") == [trace_id_of_job("job-1")]
    assert reopened.find("called") == [TRACE]
    assert [each.parent_id for each in reopened.spans(TRACE) if each.op == "platform"] == ["b7ad6b7169203331"]
    reopened.close()


async def test_jobs_of_which_no_span_comes_cost_nothing(store, recorder, clock):
    traces = Traces(store, recorder, input_of=lambda *_: None)
    for number in range(100):
        job_id = f"job-{number}"
        await tell(
            traces, recorder, clock,
            (0, event(JobStatus.IN_QUEUE, worker=None, job_id=job_id)),
            (0, event(JobStatus.IN_PROGRESS, job_id=job_id)),
            (0, event(JobStatus.COMPLETED, job_id=job_id)),
        )  # fmt: skip
    await traces._tell()
    assert (traces._watched, await traces.latest(10)) == ({}, [])
    await traces.close()


class FullDisk:
    """A store that can write nothing."""

    def write(self, records):
        raise StoreUnavailable("no space left")

    def close(self):
        pass


async def test_a_store_that_fails_is_said_once_and_stops_nothing(recorder, clock, caplog):
    traces = Traces(FullDisk(), recorder, input_of=lambda *_: None)
    for job_id in ("a", "b"):
        await tell(traces, recorder, clock, (0, event(JobStatus.TIMED_OUT, job_id=job_id)))
        await traces._tell()
    assert caplog.text.count("no space left") == 1
    await traces.close()


def client_of(traces, *, api_key=None, token=None):
    app = Starlette(routes=traces_routes(traces, Admission(api_key=api_key), token=token))
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=True)


BODY = encode([job("a"), record("x", below="a")], {"service.name": "test"})
JSON = {"content-type": "application/json"}


def test_spans_come_in_as_json_packed_or_not_and_are_shown(store, recorder):
    with client_of(Traces(store, recorder, input_of=lambda *_: None)) as client:
        assert client.post("/v1/traces", content=BODY, headers=JSON).status_code == 200
        packed = {**JSON, "content-encoding": "gzip"}
        assert client.post("/v1/traces", content=gzip.compress(BODY), headers=packed).status_code == 200
        assert [row["name"] for row in client.get("/_/traces/job-1").json()["spans"]] == ["a", "x"]
        assert [each["name"] for each in client.get("/_/traces?limit=5").json()["traces"]] == ["a"]
        assert client.get("/_/traces/nobody").json()["spans"] == []


def test_spans_come_in_as_opentelemetrys_exporters_send_them(store, recorder):
    pytest.importorskip("opentelemetry.proto")
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    with provider.get_tracer("theirs").start_as_current_span("outer") as span:
        span.set_attribute("tokens", 3)
    body = encode_spans(kept.get_finished_spans()).SerializeToString()
    with client_of(Traces(store, recorder, input_of=lambda *_: None)) as client:
        answer = client.post("/v1/traces", content=body, headers={"content-type": "application/x-protobuf"})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-protobuf")
        name = f"{span.get_span_context().trace_id:032x}"
        (row,) = client.get(f"/_/traces/{name}").json()["spans"]
    assert (row["name"], row["attributes"]) == ("outer", {"tokens": 3})


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"{", JSON),
        (b"\xff\xff", {"content-type": "application/x-protobuf"}),
        (b"no gzip", {**JSON, "content-encoding": "gzip"}),
        (b"{}", {**JSON, "content-encoding": "br"}),
        (gzip.compress(b" " * 20_000_000), {**JSON, "content-encoding": "gzip"}),
    ],
)
def test_what_cannot_be_read_is_refused_as_the_callers_mistake(store, recorder, body, headers):
    from flashkit.errors import InputError

    with client_of(Traces(store, recorder, input_of=lambda *_: None)) as client, pytest.raises(InputError):
        client.post("/v1/traces", content=body, headers=headers)


def test_a_store_that_cannot_write_makes_senders_come_again(recorder):
    with client_of(Traces(FullDisk(), recorder, input_of=lambda *_: None)) as client:
        assert client.post("/v1/traces", content=BODY, headers=JSON).status_code == 503


def test_strangers_and_web_pages_bring_no_spans(store, recorder):
    traces = Traces(store, recorder, input_of=lambda *_: None)
    from flashkit.errors import FlashkitError

    with client_of(traces, api_key="key", token="token") as client:
        for refused in ({}, {"authorization": "Bearer other"}, {"origin": "http://evil.example"}):
            with pytest.raises(FlashkitError):
                client.post("/v1/traces", content=BODY, headers={**JSON, **refused})
        with pytest.raises(FlashkitError):
            client.get("/_/traces/job-1")
        assert client.post("/v1/traces?token=token", content=BODY, headers=JSON).status_code == 200
        assert client.get("/_/traces/job-1", headers={"authorization": "Bearer key"}).status_code == 200


def test_without_traces_the_dashboard_is_told_that_there_are_none():
    with client_of(None) as client:
        assert client.get("/_/traces/job-1").json()["spans"] == []
        assert client.post("/v1/traces", content=BODY, headers=JSON).status_code == 404
