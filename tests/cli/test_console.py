"""The words and numbers that `flashkit dev` prints."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from flashkit import VLLM, Weights, gpu_endpoint
from flashkit.catalog import GpuType
from flashkit.cli.apps import AppEndpoint
from flashkit.cli.console import Screen, describe_endpoint, describe_spec
from flashkit.cli.job_lines import route_of, short_id
from flashkit.cli.quantities import format_bytes, format_ms
from flashkit.emulator.events import (
    CapacityEvent,
    ClockEvent,
    FaultEvent,
    JobEvent,
    LogLine,
    ReloadEvent,
    WorkerEvent,
)
from flashkit.emulator.supervisor import LocalEndpoint
from flashkit.errors import ErrorReport
from flashkit.protocol import JobStatus
from flashkit.spec import EndpointSpec, Kind, WorkerBounds

JOB_ID = "0a1b2c3d-0000-0000-0000-000000000000"


def job_event(status, **parts):
    blank = {"attempt": 1, "worker_id": "w1", "delay_ms": None, "execution_ms": None, "cold_start_ms": None}
    sizes = {"error": None, "input_bytes": 1200, "output_bytes": 6000}
    return JobEvent("embed", JOB_ID, status, **{**blank, **sizes, **parts})


def printed(*events, log_level="warning", endpoints=(), **console):
    out = io.StringIO()
    screen = Screen(log_level=log_level, console=Console(file=out, highlight=False, markup=False, **console))
    screen.know(endpoints)
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
        "✓ embed       run      0a1b2c3d  COMPLETED  queue 12 ms · cold start 840 ms · run 31 ms · 1.2 KB → 6 KB\n"
    )


def test_a_failed_job_shows_its_error_below():
    report = ErrorReport("handler_error", "no such key", "KeyError", "app.py:9 in embed", "add it", request_id=JOB_ID)
    lines = printed(job_event(JobStatus.FAILED, error=report)).splitlines()
    assert lines[1:] == [
        "           KeyError: no such key", "             at app.py:9 in embed", "             hint: add it",
        f"             request: {JOB_ID}",
    ]  # fmt: skip


def test_a_second_attempt_is_told():
    assert "attempt 2 · " in printed(job_event(JobStatus.COMPLETED, attempt=2, delay_ms=5))


@pytest.mark.parametrize(("status", "attempt"), [(JobStatus.IN_QUEUE, 0), (JobStatus.IN_PROGRESS, 1)])
def test_a_job_that_goes_on_is_shown_when_asked_for(status, attempt):
    assert printed(job_event(status, attempt=attempt)) == ""
    assert status in printed(job_event(status, attempt=attempt), log_level="info")


def test_a_request_has_one_line_with_its_failed_attempts_and_faults_below():
    lines = printed(
        job_event(JobStatus.IN_QUEUE, attempt=0, worker_id=None),
        job_event(JobStatus.IN_PROGRESS, worker_id="w1"),
        FaultEvent("embed", JOB_ID, "w1", "kill", "embed:kill=1"),
        WorkerEvent("embed", "w1", "killed", "killed by a fault"),
        job_event(JobStatus.IN_QUEUE, attempt=1, worker_id=None),
        job_event(JobStatus.IN_PROGRESS, attempt=2, worker_id="w2"),
        job_event(JobStatus.COMPLETED, attempt=2, worker_id="w2", delay_ms=900, execution_ms=1500),
    ).splitlines()
    assert [line[9:] for line in lines[:2]] == [
        "· embed       worker w1 killed: killed by a fault",
        "✓ embed       run      0a1b2c3d  COMPLETED  attempt 2 · queue 900 ms · run 1.5 s · 1.2 KB → 6 KB",
    ]
    assert lines[2:] == [
        "           ⚡ fault embed:kill=1", "           ↻ attempt 1 lost on w1: killed by a fault",
    ]  # fmt: skip


def known_endpoint(**options):
    spec = EndpointSpec(**{"name": "embed", "kind": Kind.GPU, "gpu": ("NVIDIA A40",), **options})
    return AppEndpoint(LocalEndpoint(spec, ("true",), Path()), "()", "app.py:1")


def test_a_gpu_job_shows_about_what_it_would_cost():
    endpoint = known_endpoint(gpu=(GpuType.NVIDIA_A40,), gpu_count=2)
    line = printed(job_event(JobStatus.COMPLETED, cold_start_ms=1000, execution_ms=500), endpoints=[endpoint])
    assert line.endswith(" · 1.2 KB → 6 KB · ~$0.00102\n")


def test_a_session_that_was_resumed_is_told_below_its_job():
    endpoint = known_endpoint(kind=Kind.ORCHESTRATOR, gpu=(), cpu="cpu3c-2-4")
    lines = printed(
        job_event(JobStatus.IN_PROGRESS, worker_id="w1"),
        job_event(JobStatus.IN_QUEUE, attempt=1, worker_id=None),
        job_event(JobStatus.IN_PROGRESS, attempt=2, worker_id="w2"),
        job_event(JobStatus.COMPLETED, attempt=2, worker_id="w2"),
        endpoints=[endpoint],
    ).splitlines()
    assert lines[1:] == ["           ↻ attempt 1 lost on w1", "           ↺ attempt 2 resumed its session on w2"]


def test_changes_of_clock_capacity_and_code_are_told():
    lines = printed(
        ClockEvent(0.0, 90.0, 1.0), ClockEvent(0.0, 0.0, 60.0), CapacityEvent("llm", 2, 1), CapacityEvent("llm", 0, 3),
        FaultEvent("", None, None, "redis", "*:redis=down"),
        ReloadEvent(("tools/parse.py",), restarted=("web",), kept=("embed",), seconds=0.41),
        ReloadEvent((".env",), added=("a",), removed=("b", "c")),
    ).splitlines()  # fmt: skip
    assert [line[9:] for line in lines] == [
        "clock moved on by 1.5 min, goes at 1x", "clock changed, goes at 60x",
        "`llm` is throttled: 2 more workers wanted, capacity 1", "`llm` is no longer throttled",
        "⚡ sessions    fault *:redis=down",
        "changed tools/parse.py: restarted `web` (0.4 s); `embed` kept warm (does not use what changed)",
        "changed .env: added `a`; removed `b`, `c`",
    ]  # fmt: skip


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
    assert (
        describe_spec(spec)
        == "gpu · 2 x L40S (or 1 more) · workers 1-10 · queue delay 4 s · idle 5 s · job limit 10 min"
    )


def test_ids_are_short_and_keep_how_the_job_came():
    assert (route_of(f"sync-{JOB_ID}"), short_id(f"sync-{JOB_ID}")) == ("runsync", "0a1b2c3d")
    assert short_id("j1") == "j1"


def test_an_engine_s_endpoint_says_which_model_it_serves_and_where_openai_s_clients_find_it():
    llm = gpu_endpoint(name="llm", gpu="L4", engine=VLLM(Weights("org/model")))
    local = LocalEndpoint(spec=llm.spec, command=("python",), cwd=Path(), example={"prompt": "Hi."})
    endpoint = AppEndpoint(local, llm.definition.signature, "app.py:3")
    text = describe_endpoint(endpoint, url="http://127.0.0.1:8484").plain
    assert "http://127.0.0.1:8484/v2/llm/openai/v1  OpenAI's routes · org/model on vLLM" in text
    assert "(messages | prompt | " in text
