"""What `flashkit dev` writes to the terminal: the banner, and one line for each thing that happens.

Text is built by functions that return rich `Text` and is printed in one place, so tests read it plain.
Colours follow the terminal: none in a pipe, none with NO_COLOR.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

import orjson
from rich.console import Console
from rich.text import Text

from flashkit.cli.apps import AppEndpoint
from flashkit.cli.http_lines import describe_request, describe_routes, http_root, mark_of
from flashkit.cli.job_lines import JobStories, route_of, short_id
from flashkit.cli.quantities import format_ms
from flashkit.cli.reloading import describe_reload
from flashkit.emulator.events import (
    CapacityEvent,
    ClockEvent,
    Event,
    FaultEvent,
    JobEvent,
    LogLine,
    ReloadEvent,
    RequestEvent,
    WorkerEvent,
)
from flashkit.errors import ErrorReport
from flashkit.protocol import JobStatus
from flashkit.spec import EndpointSpec, EngineSpec, Kind, ScalerType

_ENGINE_NAMES = {"vllm": "vLLM", "embedding": "the embedding engine", "scripted": "a script"}
_CHATTY = ("debug", "info")
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
_ENDPOINTS_IN_FULL = 4
"""With more endpoints the banner has one line for each, so that it fits a screen."""
_GPU_DEVICE = Path("/dev/nvidiactl")


class Output(Protocol):
    """Where `flashkit dev` says what happens: a person's screen, or lines of JSON."""

    log_level: str

    def show_banner(
        self,
        endpoints: Sequence[AppEndpoint],
        *,
        url: str,
        state_dir: Path,
        is_reloading: bool,
        sessions: str | None = None,
        emulated: Sequence[str] = (),
        has_keys: bool = False,
    ) -> None:
        """Say what runs, where, and how to try it.

        Args:
            endpoints: What runs.
            url: The platform's address.
            state_dir: Where its state is.
            is_reloading: Saved files are looked at.
            sessions: Where those are kept.
            emulated: What was asked for that the platform does not do by itself, in words.
            has_keys: Single keys are commands.
        """

    def show_event(self, event: Event) -> None:
        """Say what happened, unless the log level hides it."""

    def say(self, message: str, *, style: str = "") -> None:
        """Say something about flashkit itself."""

    def show_problem(self, report: ErrorReport) -> None:
        """Show an error of the user's app, with its traceback when there is one."""

    def clear(self) -> None:
        """Wipe what was shown."""


class Screen:
    """Prints events as lines for people. One per `flashkit dev`."""

    def __init__(self, *, log_level: str, console: Console | None = None) -> None:
        self.log_level = log_level
        self._console = console or make_console()
        self._name_width = _NAME_WIDTH
        self._specs: dict[str, EndpointSpec] = {}
        self._stories = JobStories(self._specs)
        self._at: float | None = None

    def know(self, endpoints: Sequence[AppEndpoint]) -> None:
        """Remember what runs, for prices and for the width of columns."""
        self._specs.update((endpoint.name, endpoint.spec) for endpoint in endpoints)
        self._name_width = max([_NAME_WIDTH, *map(len, self._specs)])

    def show_banner(
        self,
        endpoints: Sequence[AppEndpoint],
        *,
        url: str,
        state_dir: Path,
        is_reloading: bool,
        sessions: str | None = None,
        emulated: Sequence[str] = (),
        has_keys: bool = False,
    ) -> None:
        """Print what runs, where, and how to try it."""
        self.know(endpoints)
        facts = describe_surroundings(
            endpoints, sessions=sessions, emulated=emulated, state_dir=state_dir, is_reloading=is_reloading
        )
        self._print(describe_start(endpoints, url=url, facts=facts, has_keys=has_keys))

    def show_event(self, event: Event, *, at: float | None = None) -> None:
        """Print the event, unless the log level hides it; `at` is when it happened, now by default."""
        self._at = at
        match event:
            case JobEvent():
                self._show_job(event)
            case RequestEvent():
                self._stamp(mark_of(event), event.endpoint, describe_request(event))
            case WorkerEvent():
                self._stories.note_worker(event)
                self._stamp(("·", "dim"), event.endpoint, describe_worker(event))
            case LogLine() if self._is_chatty or not event.text.startswith(_SDK_GREETING):
                # RUNPOD_LOG_LEVEL holds the SDK's lines back in the worker; prints come at any level.
                self._stamp(("│", "dim"), event.endpoint, Text(event.text))
            case FaultEvent():
                self._show_fault(event)
            case CapacityEvent() | ClockEvent():
                self._tell(describe_change(event), "yellow")
            case ReloadEvent():
                self._tell(describe_reload(event), "red" if event.error else "bold")
            case _:
                pass

    def say(self, message: str, *, style: str = "") -> None:
        """Print a line about flashkit itself."""
        self._at = None
        self._tell(message, style)

    def _tell(self, message: str, style: str) -> None:
        self._print(Text.assemble((_time_of_day(self._at), "dim"), " ", (message, style)))

    def show_problem(self, report: ErrorReport) -> None:
        """Print an error of the user's app, with its traceback when there is one."""
        trace = str(report.details.get("traceback") or "").rstrip()
        if trace:
            self._print(Text(_without_message(trace, report), style="dim"))
        self._print(Text(report.render(), style="red"))

    def clear(self) -> None:
        """Wipe the screen."""
        self._console.clear()

    @property
    def _is_chatty(self) -> bool:
        return self.log_level in _CHATTY

    def _show_job(self, event: JobEvent) -> None:
        if not event.status.is_final:
            self._stories.note_job(event)
            if not self._is_chatty:
                return
        mark, style = _STATUS_LOOKS[event.status]
        facts = " · ".join(self._stories.facts(event))
        how = (f"{route_of(event.job_id):<7}  {short_id(event.job_id)}  ", "dim")
        self._stamp((mark, style), event.endpoint, Text.assemble(how, (event.status, style), f"  {facts}"))
        if event.status.is_final:
            for note in self._stories.end(event):
                self._print(Text(_indent(note), style="yellow"))
        if event.error is not None:
            self._print(Text(_indent(event.error.render()), style="red"))

    def _show_fault(self, event: FaultEvent) -> None:
        self._stories.note_fault(event)
        if event.job_id is None or self._is_chatty:
            where = f" on worker {event.worker_id}" if event.worker_id else ""
            self._stamp(("⚡", "yellow"), event.endpoint or "sessions", Text(f"fault {event.detail}{where}"))

    def _stamp(self, mark: tuple[str, str], endpoint: str, text: Text) -> None:
        name = (f"{endpoint:<{self._name_width}}", "bold")
        self._print(Text.assemble((_time_of_day(self._at), "dim"), " ", mark, " ", name, "  ", text))

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that never fails on a character the terminal does not have."""
    stream = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
    return Console(file=stream, highlight=False, markup=False, emoji=False)


def describe_start(
    endpoints: Sequence[AppEndpoint], *, url: str, facts: Sequence[tuple[str, str, str]], has_keys: bool = False
) -> Text:
    """Return the banner after its first line: addresses, endpoints, then a line for each fact."""
    text = Text.assemble(
        "  local platform at ", (url, "bold cyan"), "   dashboard ", (f"{url}/", "bold cyan"), "\n"
    )  # fmt: skip
    describe = describe_endpoint if len(endpoints) <= _ENDPOINTS_IN_FULL else describe_endpoint_in_a_line
    for endpoint in endpoints:
        text.append_text(describe(endpoint, url=url))
    text.append("\n")
    for name, fact, note in facts:
        text.append_text(Text.assemble((f"{name:<9} ", "dim"), fact, (f"  {note}" if note else "", "dim"), "\n"))
    text.append("? for keys · Ctrl-C stops\n" if has_keys else "Ctrl-C stops\n", style="dim")
    return text


def describe_surroundings(
    endpoints: Sequence[AppEndpoint],
    *,
    sessions: str | None,
    emulated: Sequence[str],
    state_dir: Path,
    is_reloading: bool,
) -> list[tuple[str, str, str]]:
    """Return what is the same for all endpoints: name, fact, and what to know about it."""
    facts = [("sessions", sessions, "see: flashkit sessions list")] if sessions else []
    if any(endpoint.spec.gpu for endpoint in endpoints):
        is_real = _GPU_DEVICE.exists()
        facts.append(("gpu", "real" if is_real else "faked: none here, GPU workers run on this CPU", ""))
    if emulated:
        facts.append(("emulated", " · ".join(emulated), ""))
    note = "saving a file restarts the endpoints that depend on it" if is_reloading else "reload is off"
    return [*facts, ("state", str(state_dir), note)]


def describe_endpoint(endpoint: AppEndpoint, *, url: str) -> Text:
    """Return the banner's lines about one endpoint: how it is called, what it is, how to try it."""
    if endpoint.spec.load_balanced:
        return _describe_http_endpoint(endpoint, url=url)
    root = f"{url}/v2/{endpoint.name}"
    body = orjson.dumps({"input": endpoint.example}).decode()
    curl = f"curl -s {root}/runsync -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    openai = Text()
    if engine := endpoint.spec.engine:
        openai = Text.assemble("    ", (f"{root}/openai/v1", "cyan"), f"  OpenAI's routes · {model_of(engine)}\n")
    return Text.assemble(
        "\n  ", (endpoint.name, "bold green"), endpoint.signature, (f"  {endpoint.where}\n", "dim"),
        "    ", (root, "cyan"), f"  {describe_spec(endpoint.spec)}\n",
        openai,
        "    ", (curl, "dim"), "\n",
    )  # fmt: skip


def model_of(engine: EngineSpec) -> str:
    """Return which model an engine serves, and how, in a few words."""
    name = engine.weights.name if engine.weights else "written answers"
    return f"{name} on {_ENGINE_NAMES.get(engine.type, engine.type)}"


def _describe_http_endpoint(endpoint: AppEndpoint, *, url: str) -> Text:
    text = Text.assemble(
        "\n  ", (endpoint.name, "bold green"), (f"  {endpoint.where}\n", "dim"),
        "    ", (http_root(url, endpoint.name), "cyan"), f"  {describe_spec(endpoint.spec)}\n",
    )  # fmt: skip
    return text.append_text(describe_routes(endpoint, url=url))


def describe_endpoint_in_a_line(endpoint: AppEndpoint, *, url: str) -> Text:
    """Return the banner's line about one of many endpoints."""
    is_http = endpoint.spec.load_balanced
    root = http_root(url, endpoint.name) if is_http else f"{url}/v2/{endpoint.name}"
    return Text.assemble("  ", (root, "cyan"), f"  {describe_spec(endpoint.spec)}\n")


def describe_spec(spec: EndpointSpec) -> str:
    """Return kind, compute, bounds, timeouts and scaling in a few words."""
    idle = format_ms(spec.idle_timeout * 1000)
    limit = format_ms(spec.execution_timeout_ms)
    workers = f"workers {spec.workers.min}-{spec.workers.max}"
    return (
        f"{_kind_words(spec)} · {_compute_words(spec)} · {workers} · {_scaler_words(spec)} · idle {idle} · "
        f"{'request' if spec.load_balanced else 'job'} limit {limit}"
    )


def _scaler_words(spec: EndpointSpec) -> str:
    if spec.scaler_type is ScalerType.QUEUE_DELAY:
        return f"queue delay {spec.scaler_value} s"
    return f"{spec.scaler_value} {'requests' if spec.load_balanced else 'jobs'} a worker"


def _kind_words(spec: EndpointSpec) -> str:
    if spec.load_balanced:
        return f"{spec.kind.value} http"
    return "tool" if spec.kind is Kind.CPU else spec.kind.value


def _compute_words(spec: EndpointSpec) -> str:
    if spec.cpu:
        return spec.cpu
    count = f"{spec.gpu_count} x " if spec.gpu_count > 1 else ""
    others = f" (or {len(spec.gpu) - 1} more)" if len(spec.gpu) > 1 else ""
    return f"{count}{spec.gpu[0]}{others}"


def describe_worker(event: WorkerEvent) -> Text:
    """Return the line about a worker."""
    style = _WORKER_LOOKS.get(event.what, "dim")
    detail = f": {event.detail}" if event.detail else ""
    return Text.assemble(("worker ", "dim"), (f"{event.worker_id} {event.what}", style), (detail, style))


def describe_change(event: CapacityEvent | ClockEvent) -> str:
    """Return the line about the platform's clock or its machines."""
    if isinstance(event, ClockEvent):
        moved = f"moved on by {format_ms(event.advanced_s * 1000)}" if event.advanced_s else "changed"
        return f"clock {moved}, goes at {event.speed:g}x"
    if event.throttled:
        return f"`{event.endpoint}` is throttled: {event.throttled} more workers wanted, capacity {event.capacity}"
    return f"`{event.endpoint}` is no longer throttled"


def _time_of_day(at: float | None) -> str:
    return datetime.fromtimestamp(time.time() if at is None else at).astimezone().strftime("%H:%M:%S")


def _without_message(trace: str, report: ErrorReport) -> str:
    """Return the traceback without its last line where the report begins with the same."""
    above, _, last = trace.rpartition("\n")
    name, _, message = last.partition(": ")
    is_said = name.rpartition(".")[2] == report.type and report.message.startswith(message)
    return above if is_said else trace


def _indent(text: str) -> str:
    return "\n".join(f"           {line}" for line in text.splitlines())
