"""The words and numbers that `flashkit dev` prints."""

import io

import pytest
from rich.console import Console

from flashkit.cli.console import Screen, describe_spec, format_bytes, format_ms, short_id
from flashkit.emulator.events import JobEvent, LogLine, WorkerEvent
from flashkit.errors import ErrorReport
from flashkit.protocol import JobStatus
from flashkit.spec import EndpointSpec, Kind, WorkerBounds

JOB_ID = "0a1b2c3d-0000-0000-0000-000000000000"


def job_event(status, **parts):
    blank = {"attempt": 1, "worker_id": "w1", "delay_ms": None, "execution_ms": None, "cold_start_ms": None}
    sizes = {"error": None, "input_bytes": 1200, "output_bytes": 6000}
    return JobEvent("embed", JOB_ID, status, **{**blank, **sizes, **parts})


def printed(*events, log_level="warning", **console):
    out = io.StringIO()
    screen = Screen(log_level=log_level, console=Console(file=out, highlight=False, markup=False, **console))
    for event in events:
        screen.show_event(event)
    return out.getvalue()


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0 ms"), (12, "12 ms"), (999, "999 ms"), (1300, "1.3 s"), (59_999, "60 s"), (600_000, "10 min"),
        (7_200_000, "2 h"), (604_800_000, "168 h"),
    ],
)  # fmt: skip
def test_durations_have_the_unit_that_people_would_use(milliseconds, text):
    assert format_ms(milliseconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (812, "812 B"), (1200, "1.2 KB"), (3_400_000, "3.4 MB"), (25_000_000, "25 MB")]
)
def test_sizes_have_the_unit_that_people_would_use(size, text):
    assert format_bytes(size) == text


def test_a_finished_job_shows_where_its_time_went():
    line = printed(job_event(JobStatus.COMPLETED, delay_ms=12, cold_start_ms=840, execution_ms=31))
    assert line[9:] == (
        "✓ embed       0a1b2c3d  COMPLETED  queue 12 ms · cold start 840 ms · run 31 ms · 1.2 KB → 6 KB\n"
    )


def test_a_failed_job_shows_its_error_below():
    report = ErrorReport("handler_error", "no such key", "KeyError", "app.py:9 in embed", "add it", request_id=JOB_ID)
    lines = printed(job_event(JobStatus.FAILED, error=report)).splitlines()
    assert lines[1:] == [
        "           KeyError: no such key", "             at app.py:9 in embed", "             hint: add it",
        f"             request: {JOB_ID}",
    ]  # fmt: skip


def test_a_second_attempt_is_told():
    assert "attempt 2 · " in printed(job_event(JobStatus.IN_PROGRESS, attempt=2, delay_ms=5))


def test_a_queued_job_is_shown_when_asked_for_or_when_it_comes_back():
    assert printed(job_event(JobStatus.IN_QUEUE, attempt=0)) == ""
    assert "IN_QUEUE" in printed(job_event(JobStatus.IN_QUEUE, attempt=0), log_level="info")
    assert "IN_QUEUE  again, after attempt 2" in printed(job_event(JobStatus.IN_QUEUE, attempt=2))


def test_prints_come_with_their_endpoint_and_are_not_interpreted():
    assert (
        printed(LogLine("embed", "w1", None, None, "[bold]x[/bold] :smile:"))[9:]
        == "│ embed       [bold]x[/bold] :smile:\n"
    )


def test_the_greeting_of_the_sdk_is_left_out_unless_asked_for():
    greeting = LogLine("embed", "w1", None, None, "--- Starting Serverless Worker |  Version 1.12.0 ---")
    assert printed(greeting) == ""
    assert "Starting" in printed(greeting, log_level="debug")


def test_a_worker_that_dies_says_why():
    assert "worker w1 exited: signal SIGKILL" in printed(WorkerEvent("embed", "w1", "exited", "signal SIGKILL"))


def test_a_long_line_is_not_broken():
    assert printed(LogLine("embed", "w1", None, None, "x" * 500), width=80).count("\n") == 1


def test_statuses_have_colours_on_a_terminal_only():
    event = job_event(JobStatus.FAILED)
    assert "\x1b[31m" in printed(event, force_terminal=True, color_system="standard")
    assert "\x1b" not in printed(event)


def test_a_spec_is_told_in_a_line():
    spec = EndpointSpec(name="llm", kind=Kind.GPU, gpu=("L40S", "L4"), gpu_count=2, workers=WorkerBounds(1, 10))
    assert describe_spec(spec) == "gpu · 2 x L40S (or 1 more) · workers 1-10 · idle 5 s · job limit 10 min"


def test_ids_are_short_and_keep_how_the_job_came():
    assert short_id(f"sync-{JOB_ID}") == "sync-0a1b2c3d"
    assert short_id("j1") == "j1"
