"""Spans on their way: in batches, in the background, and what becomes of them when a receiver is slow, down or rude."""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flashkit.errors import ConfigurationError
from flashkit.settings import Settings
from flashkit.telemetry import Op, Recorder, enter_job, recorder, span
from flashkit.telemetry.exporter import Delivery, Exporter, Exporters
from flashkit.telemetry.otlp import decode
from flashkit.telemetry.senders import CollectorSender, JsonSender, parse_headers
from flashkit.telemetry.setup import REDACTED, load_redaction, start_traces
from flashkit.telemetry.spans import HeadSampler, use_recorder


class Receiver:
    """A collector on this machine that answers as a test wants."""

    def __init__(self):
        self.status = 200
        self.requests = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.requests.append((self.path, headers, body))
                self.send_response(outer.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1/traces"

    @property
    def spans(self):
        return [
            each
            for _, headers, body in self.requests
            for each in decode(body, is_json=headers["content-type"] == "application/json")
        ]

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def traced(receiver):
    """Trace this process into the receiver, and send what is left when asked: `traced()`."""
    exporter = Exporter(JsonSender(receiver.url, service="test", worker_id="w1"), tick_s=0.01, first_backoff_s=0.01)
    before = use_recorder(Recorder(exporter, sampler=HeadSampler(1e6)))
    yield exporter
    exporter.close()
    use_recorder(before)


def run_job(job_id="job-1", **attributes):
    with enter_job(Op.JOB, "agent", {"flashkit.job.id": job_id}, job_id=job_id, traceparent=None) as job:
        for name, value in attributes.items():
            job.set(name, value)
        with span(Op.STEP, "search"):
            pass
    return job


def wait_until(condition, *, seconds=20):
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.005)


def test_ended_spans_arrive_as_they_were(traced, receiver):
    job = run_job(tokens=3, share=0.5, is_new=True, reasons=["stop"], text="Grüße 🎌")
    traced.close()
    step, told = receiver.spans
    assert (step.name, step.op, step.parent_id) == ("search", "step", job.span_id)
    assert (told.trace_id, told.span_id, told.start_ns, told.end_ns) == (
        job.trace_id, job.span_id, job.start_ns, job.end_ns,
    )  # fmt: skip
    assert (told.service, told.worker_id, told.job_id) == ("test", "w1", "job-1")
    assert told.attributes == {
        "flashkit.job.id": "job-1", "tokens": 3, "share": 0.5, "is_new": True, "reasons": ["stop"], "text": "Grüße 🎌",
    }  # fmt: skip


def test_what_is_open_is_told_while_it_runs(traced, receiver):
    with enter_job(Op.JOB, "agent", {}, job_id="j", traceparent=None) as job, span(Op.STEP, "hangs"):
        wait_until(lambda: {each.name for each in receiver.spans} == {"agent", "hangs"})
        assert [each.end_ns for each in receiver.spans] == [0, 0]
    traced.close()
    assert [each.name for each in receiver.spans if each.end_ns] == ["hangs", "agent"]
    assert job.end_ns


def test_what_is_over_in_a_moment_is_told_once(traced, receiver):
    for _ in range(50):
        run_job()
    traced.close()
    assert len(receiver.spans) == 100


def test_a_receiver_that_was_down_for_a_while_gets_everything(traced, receiver):
    receiver.status = 503
    for _ in range(20):
        run_job()
    wait_until(lambda: len(receiver.requests) >= 2)
    receiver.status = 200
    receiver.requests.clear()
    wait_until(lambda: len(receiver.spans) >= 40)
    assert traced.dropped == 0


def test_spans_that_find_no_room_are_dropped_counted_and_said_once(receiver, caplog):
    receiver.status = 503
    sender = JsonSender(receiver.url, service="test", worker_id="w1")
    exporter = Exporter(sender, queue_limit=10, tick_s=0.01, first_backoff_s=0.01)
    before = use_recorder(Recorder(exporter, sampler=HeadSampler(1e6)))
    try:
        for _ in range(100):
            run_job()
        exporter.close()
    finally:
        use_recorder(before)
    assert exporter.dropped == 190
    assert [record.message for record in caplog.records if "does not take spans" in record.message] == [
        f"{receiver.url} does not take spans now; jobs go on, and what finds no room is dropped"
    ]


def test_a_batch_that_is_refused_is_dropped_and_the_next_one_is_sent(traced, receiver):
    receiver.status = 400
    run_job()
    wait_until(lambda: traced.dropped == 2)
    receiver.status = 200
    receiver.requests.clear()
    run_job()
    traced.close()
    assert len(receiver.spans) == 2


def test_a_receiver_that_never_answers_holds_nobody_up():
    class Stuck:
        name = "stuck"
        tells_open_after_s = 0.0

        def __init__(self):
            self.is_asked, self.may_go_on = threading.Event(), threading.Event()

        def send(self, spans):
            self.is_asked.set()
            self.may_go_on.wait(30)
            return Delivery.LATER

        def close(self):
            pass

    stuck = Stuck()
    exporter = Exporter(stuck, queue_limit=100, tick_s=0.001)
    before = use_recorder(Recorder(exporter, sampler=HeadSampler(1e6)))
    try:
        run_job()
        assert stuck.is_asked.wait(20)
        for _ in range(500):
            run_job()  # would never come back if it waited
        assert exporter.dropped > 800
        exporter.close(timeout_s=0.01)
    finally:
        stuck.may_go_on.set()
        use_recorder(before)


def test_a_sender_that_fails_in_a_way_nobody_thought_of_ends_nothing(caplog):
    class Broken:
        name = "broken"
        tells_open_after_s = 60.0
        calls = 0

        def send(self, spans):
            self.calls += 1
            if self.calls == 1:
                raise KeyError("a bug")
            return Delivery.SENT

        def close(self):
            pass

    sender = Broken()
    exporter = Exporter(sender, tick_s=0.001)
    before = use_recorder(Recorder(exporter, sampler=HeadSampler(1e6)))
    try:
        run_job()
        wait_until(lambda: sender.calls == 1)
        exporter.close()
    finally:
        use_recorder(before)
    assert sender.calls == 2
    assert "spans could not be sent" in caplog.text


def test_nothing_listens_and_jobs_go_on():
    exporter = Exporter(JsonSender("http://127.0.0.1:9/v1/traces", service="test", worker_id="w1"), tick_s=0.01)
    before = use_recorder(Recorder(exporter, sampler=HeadSampler(1e6)))
    try:
        run_job()
        exporter.close()
    finally:
        use_recorder(before)


def test_the_threads_of_two_receivers_do_not_wait_for_each_other(receiver):
    down = Exporter(JsonSender("http://127.0.0.1:9/", service="test", worker_id="w"), tick_s=0.01)
    up = Exporter(JsonSender(receiver.url, service="test", worker_id="w"), tick_s=0.01)
    both = Exporters([down, up])
    before = use_recorder(Recorder(both, sampler=HeadSampler(1e6)))
    try:
        run_job()
        wait_until(lambda: len(receiver.spans) == 2)
        both.close()
    finally:
        use_recorder(before)


def test_a_collector_gets_spans_by_opentelemetrys_own_exporter(receiver, monkeypatch):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url.removesuffix("/v1/traces"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=secret")
    sender = CollectorSender(receiver.url, service="test", worker_id="w1")
    exporter = Exporter(sender, tick_s=0.01)
    before = use_recorder(Recorder(exporter, sampler=HeadSampler(1e6)))
    try:
        job = run_job(tokens=3, reasons=["stop"])
        exporter.close(timeout_s=30)
    finally:
        use_recorder(before)
    path, headers, _ = receiver.requests[0]
    assert (path, headers["x-api-key"]) == ("/v1/traces", "secret")
    step, told = receiver.spans
    assert (told.span_id, told.service, told.worker_id, told.attributes["tokens"]) == (job.span_id, "test", "w1", 3)
    assert (step.op, step.parent_id) == ("step", job.span_id)


def test_a_collector_that_knows_no_open_spans_gets_a_mark(receiver):
    sender = JsonSender(receiver.url, service="test", worker_id="w1", knows_open=False)
    sender.tells_open_after_s = 0.0
    exporter = Exporter(sender, tick_s=0.01)
    before = use_recorder(Recorder(exporter, sampler=HeadSampler(1e6)))
    try:
        with enter_job(Op.JOB, "agent", {}, job_id="j", traceparent=None) as job:
            wait_until(lambda: receiver.spans)
        exporter.close()
    finally:
        use_recorder(before)
    mark = receiver.spans[0]
    assert (mark.name, mark.parent_id, mark.attributes["flashkit.open"]) == ("agent (open)", job.span_id, True)
    assert mark.end_ns > mark.start_ns


def test_the_headers_of_a_collector_are_read_as_opentelemetry_writes_them():
    assert parse_headers("api-key=a%20b, x=1,,broken") == {"api-key": "a b", "x": "1"}


def test_settings_switch_traces_on_and_off(receiver):
    assert not Settings.from_environment({}).has_traces
    settings = Settings.from_environment({"FLASHKIT_TRACES_URL": receiver.url, "RUNPOD_POD_ID": "w7"})
    before = recorder()
    stop = start_traces(settings, service="agent")
    run_job()
    stop()
    assert recorder() is before
    assert {(each.service, each.worker_id) for each in receiver.spans} == {("agent", "w7")}
    start_traces(Settings.from_environment({}), service="agent")()
    assert recorder() is before


def test_the_user_redacts_what_is_told(receiver, monkeypatch, tmp_path):
    (tmp_path / "hiding.py").write_text("def hide(name, text):\n    return text.replace('secret', '***')\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = Settings.from_environment({"FLASHKIT_TRACES_URL": receiver.url, "FLASHKIT_TRACE_REDACT": "hiding:hide"})
    stop = start_traces(settings, service="agent")
    with enter_job(Op.JOB, "a", {}, job_id="j", traceparent=None) as job:
        job.set("prompt", "the secret word")
        job.fail("no secret")
    stop()
    assert "secret" not in json.dumps([each.to_json() for each in receiver.spans])
    assert receiver.spans[0].attributes["prompt"] == "the *** word"


def test_what_redaction_fails_on_is_not_told(monkeypatch, tmp_path):
    (tmp_path / "failing.py").write_text("def hide(name, text):\n    return 1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_redaction("failing:hide")("name", "text") == REDACTED


@pytest.mark.parametrize("name", ["nowhere:hide", "json:hide", "", ":x"])
def test_redaction_that_is_not_there_is_refused_at_the_start(name):
    with pytest.raises(ConfigurationError, match="FLASHKIT_TRACE_REDACT"):
        load_redaction(name)


def test_without_opentelemetrys_packages_a_collector_gets_json(receiver, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "flashkit.telemetry.opentelemetry_sdk", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=secret")
    exporter = Exporter(CollectorSender(receiver.url, service="test", worker_id="w1"), tick_s=0.01)
    before = use_recorder(Recorder(exporter, sampler=HeadSampler(1e6)))
    try:
        run_job()
        exporter.close(timeout_s=30)
    finally:
        use_recorder(before)
    assert [each.name for each in receiver.spans] == ["search", "agent"]
    assert receiver.requests[0][1]["x-api-key"] == "secret"
    assert "flashkit-serverless[traces]" in caplog.text
