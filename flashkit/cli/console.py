"""What `flashkit dev` writes to the terminal: the banner, and one line for each thing that happens.

Text is built by functions that return rich `Text` and is printed in one place, so tests read it plain.
Colours follow the terminal: none in a pipe, none with NO_COLOR.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import orjson
from rich.console import Console
from rich.text import Text

from flashkit import __version__
from flashkit.cli.apps import AppEndpoint
from flashkit.emulator.events import Event, JobEvent, LogLine, WorkerEvent
from flashkit.errors import ErrorReport
from flashkit.protocol import JobStatus
from flashkit.spec import EndpointSpec, Kind

_SDK_GREETING = "--- Starting Serverless Worker"
"""Printed by the runpod SDK, whatever its log level."""
_STATUS_LOOKS = {
    JobStatus.IN_QUEUE: ("·", "dim"),
    JobStatus.IN_PROGRESS: ("▸", "cyan"),
    JobStatus.COMPLETED: ("✓", "green"),
    JobStatus.FAILED: ("✗", "red"),
    JobStatus.CANCELLED: ("⊘", "yellow"),
    JobStatus.TIMED_OUT: ("⧖", "magenta"),
}
_WORKER_LOOKS = {"ready": "green", "killed": "red", "unhealthy": "red"}
_NAME_WIDTH = 10
"""Narrowest column of endpoint names."""


class Screen:
    """Prints events as lines. One per `flashkit dev`."""

    def __init__(self, *, log_level: str, console: Console | None = None) -> None:
        self._console = console or make_console()
        self._is_chatty = log_level in ("debug", "info")
        self._name_width = _NAME_WIDTH

    def show_banner(
        self,
        endpoints: Sequence[AppEndpoint],
        *,
        url: str,
        state_dir: Path,
        is_reloading: bool,
        sessions: str | None = None,
    ) -> None:
        """Print what runs, where, and how to try it; `sessions` says where those are kept."""
        self._name_width = max([_NAME_WIDTH, *(len(endpoint.name) for endpoint in endpoints)])
        banner = describe_start(endpoints, url=url, state_dir=state_dir, is_reloading=is_reloading, sessions=sessions)
        self._print(banner)

    def show_event(self, event: Event) -> None:
        """Print the event, unless the log level hides it."""
        match event:
            case JobEvent():
                self._show_job(event)
            case WorkerEvent():
                self._stamp(("·", "dim"), event.endpoint, describe_worker(event))
            case LogLine() if self._is_chatty or not event.text.startswith(_SDK_GREETING):
                # RUNPOD_LOG_LEVEL holds the SDK's lines back in the worker; prints come at any level.
                self._stamp(("│", "dim"), event.endpoint, Text(event.text))
            case _:
                pass

    def say(self, message: str, *, style: str = "") -> None:
        """Print a line about flashkit itself."""
        self._print(Text.assemble((_clock(), "dim"), " ", (message, style)))

    def show_problem(self, report: ErrorReport) -> None:
        """Print an error of the user's app, with its traceback when there is one."""
        trace = str(report.details.get("traceback") or "").rstrip()
        if trace:
            self._print(Text(trace, style="dim"))
        self._print(Text(report.render(), style="red"))

    def _show_job(self, event: JobEvent) -> None:
        if event.status is JobStatus.IN_QUEUE and event.attempt == 0 and not self._is_chatty:
            return
        self._stamp(_STATUS_LOOKS[event.status], event.endpoint, describe_job(event))
        if event.error is not None:
            self._print(Text(_indent(event.error.render()), style="red"))

    def _stamp(self, mark: tuple[str, str], endpoint: str, text: Text) -> None:
        name = (f"{endpoint:<{self._name_width}}", "bold")
        self._print(Text.assemble((_clock(), "dim"), " ", mark, " ", name, "  ", text))

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that never fails on a character the terminal does not have."""
    stream = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
    return Console(file=stream, highlight=False, markup=False, emoji=False)


def describe_start(
    endpoints: Sequence[AppEndpoint], *, url: str, state_dir: Path, is_reloading: bool, sessions: str | None = None
) -> Text:
    """Return the banner."""
    text = Text.assemble(("flashkit ", "bold"), f"{__version__} · local platform at ", (url, "bold cyan"), "\n")
    for endpoint in endpoints:
        text.append_text(describe_endpoint(endpoint, url=url))
    reload_note = "saving a .py file restarts its workers" if is_reloading else "reload is off"
    if sessions:
        text.append_text(Text.assemble(("\nsessions  ", "dim"), sessions, ("  see: flashkit sessions list", "dim")))
    text.append_text(Text.assemble(("\nstate  ", "dim"), f"{state_dir}  ", (f"{reload_note} · Ctrl-C stops\n", "dim")))
    return text


def describe_endpoint(endpoint: AppEndpoint, *, url: str) -> Text:
    """Return the banner's three lines about one endpoint: how it is called, what it is, how to try it."""
    root = f"{url}/v2/{endpoint.name}"
    body = orjson.dumps({"input": endpoint.example}).decode()
    curl = f"curl -s {root}/runsync -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    return Text.assemble(
        "\n  ", (endpoint.name, "bold green"), endpoint.signature, (f"  {endpoint.where}\n", "dim"),
        "    ", (root, "cyan"), f"  {describe_spec(endpoint.spec)}\n",
        "    ", (curl, "dim"), "\n",
    )  # fmt: skip


def describe_spec(spec: EndpointSpec) -> str:
    """Return kind, compute, bounds and timeouts in a few words."""
    idle = format_ms(spec.idle_timeout * 1000)
    limit = format_ms(spec.execution_timeout_ms)
    workers = f"workers {spec.workers.min}-{spec.workers.max}"
    return f"{_kind_words(spec)} · {_compute_words(spec)} · {workers} · idle {idle} · job limit {limit}"


def _kind_words(spec: EndpointSpec) -> str:
    return "tool" if spec.kind is Kind.CPU else spec.kind.value


def _compute_words(spec: EndpointSpec) -> str:
    if spec.cpu:
        return spec.cpu
    count = f"{spec.gpu_count} x " if spec.gpu_count > 1 else ""
    others = f" (or {len(spec.gpu) - 1} more)" if len(spec.gpu) > 1 else ""
    return f"{count}{spec.gpu[0]}{others}"


def describe_job(event: JobEvent) -> Text:
    """Return the line about a job: status, then where its time went and how big it was."""
    style = _STATUS_LOOKS[event.status][1]
    facts = " · ".join(_job_facts(event))
    return Text.assemble(short_id(event.job_id), "  ", (event.status, style), f"  {facts}" if facts else "")


def describe_worker(event: WorkerEvent) -> Text:
    """Return the line about a worker."""
    style = _WORKER_LOOKS.get(event.what, "dim")
    detail = f": {event.detail}" if event.detail else ""
    return Text.assemble(("worker ", "dim"), (f"{event.worker_id} {event.what}", style), (detail, style))


def short_id(job_id: str) -> str:
    """Return enough of a job's id to tell it from the others on the screen; errors show all of it."""
    prefix = "sync-" if job_id.startswith("sync-") else ""
    return prefix + job_id.removeprefix("sync-")[:8]


def format_ms(milliseconds: float) -> str:
    """Return a duration for people: 12 ms, 1.3 s, 10 min, 2 h."""
    if milliseconds < 1000:  # noqa: PLR2004
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    for unit, size in (("s", 1), ("min", 60), ("h", 3600)):
        if seconds < 60 * size or unit == "h":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError("the last unit takes everything")


def format_bytes(size: int) -> str:
    """Return a size for people: 812 B, 1.2 KB, 3.4 MB."""
    if size < 1000:  # noqa: PLR2004
        return f"{size} B"
    if size < 1_000_000:  # noqa: PLR2004
        return f"{size / 1000:.3g} KB"
    return f"{size / 1_000_000:.3g} MB"


def _job_facts(event: JobEvent) -> list[str]:
    if event.status is JobStatus.IN_QUEUE:
        return [f"again, after attempt {event.attempt}" if event.attempt else format_bytes(event.input_bytes)]
    facts = [f"attempt {event.attempt}"] if event.attempt > 1 else []
    if event.delay_ms is not None:
        facts.append(f"queue {format_ms(event.delay_ms)}")
    if event.cold_start_ms is not None:
        facts.append(f"cold start {format_ms(event.cold_start_ms)}")
    if not event.status.is_final:
        return [*facts, f"on {event.worker_id}"] if event.worker_id else facts
    if event.execution_ms is not None:
        facts.append(f"run {format_ms(event.execution_ms)}")
    return [*facts, f"{format_bytes(event.input_bytes)} → {format_bytes(event.output_bytes)}"]


def _clock() -> str:
    return datetime.now().astimezone().strftime("%H:%M:%S")


def _indent(text: str) -> str:
    return "\n".join(f"           {line}" for line in text.splitlines())
