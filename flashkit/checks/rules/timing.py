"""FK2xx: timeouts that stop the right thing at the right time, and starts that are quick enough."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from flashkit import catalog
from flashkit.checks.models import FROM_NAME, model_of
from flashkit.checks.project import Endpoint, Project
from flashkit.checks.rule import SHIPPED, Problem, Severity, endpoint_rule, rule
from flashkit.plan.figures import GB, format_bytes
from flashkit.protocol import RUNSYNC_DEFAULT_WAIT_MS, RUNSYNC_WAIT_MS, PlatformDefaults
from flashkit.spec import Kind

_LONGEST_WAIT_MS: Final = RUNSYNC_WAIT_MS[1]
_PAUSE_OF_A_PERSON_SECONDS: Final = 120
"""Chosen: how long somebody takes to read an answer and write the next message."""
_PAUSE_OF_AN_AGENT_SECONDS: Final = 30
"""Chosen: how long a turn does other things between two calls of one model; a tool call takes that long at most."""
_IMAGE_BYTES: Final = 8 * GB
"""Chosen: an image with CUDA, torch and vLLM, compressed."""


@endpoint_rule(
    "FK201",
    "timeout-set",
    Severity.ERROR,
    what="Every endpoint says how long a job may run.",
    why="A job that loops or hangs keeps its GPU until the execution timeout: ten minutes by default, 5.5 for "
    "requests. "
    "How long is too long is something only you know.",
    fix="Write execution_timeout_ms=..., about twice what the longest good job takes.",
)
def timeout_set(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Decorator calls without `execution_timeout_ms`."""
    del project
    if not endpoint.names_option("execution_timeout_ms"):
        yield Problem(
            f"endpoint `{endpoint.name}` has no execution timeout of its own, so a job that hangs runs "
            f"{endpoint.spec.execution_timeout_ms / 1000:g} s"
        )


@endpoint_rule(
    "FK202",
    "client-can-wait",
    Severity.WARNING,
    what="A job that clients wait for with /runsync ends before they give up.",
    why="A /runsync request waits 90 s, with ?wait= up to 300 s, and then answers with the job's id and no output. A "
    "client that takes this for a failure sends the job again while the first one still runs and costs.",
    fix="Send long jobs with /run and stream or poll them, as flashkit's client does; or lower execution_timeout_ms.",
)
def client_can_wait(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Entry points whose jobs may outlast /runsync."""
    limit = endpoint.spec.execution_timeout_ms
    if endpoint.spec.load_balanced or not project.is_entry(endpoint) or limit <= RUNSYNC_DEFAULT_WAIT_MS:
        return
    is_too_long = limit > _LONGEST_WAIT_MS
    waits = (
        f"at most {_LONGEST_WAIT_MS // 1000} s" if is_too_long else f"{RUNSYNC_DEFAULT_WAIT_MS // 1000} s by default"
    )
    yield Problem(
        f"a job of `{endpoint.name}` may run {limit / 1000:g} s, and /runsync waits {waits}",
        severity=None if is_too_long else Severity.NOTE,
    )


@rule(
    "FK203",
    "call-has-timeout",
    Severity.WARNING,
    what="Every call of another endpoint in a session has a timeout.",
    why="Without one, a page that never loads or a queue that never moves holds the whole turn until its own limit, "
    "and "
    "everything that was done so far waits with it.",
    fix="Write session.call(endpoint, ..., timeout=30), and gather(..., partial=True) where the rest may go on.",
)
def call_has_timeout(project: Project) -> Iterator[Problem]:
    """`session.call` without `timeout`."""
    for caller in project.endpoints:
        for call in caller.code.calls if caller.code else ():
            if call.is_session_call and not call.has_timeout:
                yield Problem(
                    f"`{caller.name}` calls `{call.callee}` without a timeout, so it may wait as long as the turn runs",
                    call.place,
                    endpoint=caller.name,
                )


@rule(
    "FK204",
    "call-outlasts-job",
    Severity.WARNING,
    what="Who calls an endpoint waits at least as long as its jobs may run.",
    why="A call that gives up first cancels a job that was allowed to go on: its work is paid for and thrown away, and "
    "the retry begins anew. The call's time counts from the queue on, cold start included.",
    fix="Raise the call's timeout above execution_timeout_ms of the endpoint, or lower that.",
)
def call_outlasts_job(project: Project) -> Iterator[Problem]:
    """Calls whose timeout is shorter than the callee's."""
    for caller in project.endpoints:
        for call in caller.code.calls if caller.code else ():
            callee = project.find(call.callee)
            limit = callee.spec.execution_timeout_ms / 1000 if callee else 0
            if call.timeout is not None and call.timeout < limit:
                yield Problem(
                    f"`{caller.name}` waits {call.timeout:g} s for `{call.callee}`, whose jobs may run {limit:g} s",
                    call.place,
                    endpoint=caller.name,
                )


@endpoint_rule(
    "FK205",
    "turn-outlasts-calls",
    Severity.WARNING,
    what="A turn may run longer than the longest call in it.",
    why="When the turn's own time is up first, the timeout of the call never fires: the turn fails as a whole "
    "instead of "
    "going on without that one result.",
    fix="Raise the orchestrator's execution_timeout_ms, or lower the timeouts of its calls.",
)
def turn_outlasts_calls(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Orchestrators with calls as long as themselves."""
    del project
    if endpoint.spec.kind is not Kind.ORCHESTRATOR or endpoint.code is None:
        return
    known = [call for call in endpoint.code.calls if call.timeout is not None]
    longest = max(known, key=lambda call: call.timeout or 0.0, default=None)
    limit = endpoint.spec.execution_timeout_ms / 1000
    if longest is not None and longest.timeout is not None and longest.timeout >= limit:
        yield Problem(
            f"`{endpoint.name}` may run {limit:g} s, and waits {longest.timeout:g} s for `{longest.callee}` alone",
            longest.place,
        )


@endpoint_rule(
    "FK206",
    "idle-outlasts-pauses",
    Severity.WARNING,
    what="Workers stay for the usual pause between two jobs of one conversation.",
    why="A person takes a minute or two between messages, an agent half a minute between two questions to its model. A "
    "worker that stops in between is a cold start in every turn, and none of it shows in a load test.",
    fix="Write idle_timeout=300 for orchestrators and 60 or more for the models that they call.",
    environments=SHIPPED,
)
def idle_outlasts_pauses(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Orchestrators, and GPU endpoints that they call, with short idle timeouts."""
    spec = endpoint.spec
    is_session = spec.kind is Kind.ORCHESTRATOR
    is_model = bool(spec.gpu) and not project.is_entry(endpoint)
    pause = _PAUSE_OF_A_PERSON_SECONDS if is_session else _PAUSE_OF_AN_AGENT_SECONDS
    if (is_session or is_model) and spec.workers.max > spec.workers.min and spec.idle_timeout < pause:
        whose = "a person's next message" if is_session else "the next step of the same turn"
        yield Problem(
            f"a worker of `{endpoint.name}` stops after {spec.idle_timeout} s without a job, and {whose} comes after "
            f"about {pause} s"
        )


@endpoint_rule(
    "FK207",
    "start-in-time",
    Severity.ERROR,
    what="A worker is ready before the platform gives it up.",
    why="A cold start that takes more than 7 minutes counts as unhealthy: the worker is stopped, another one starts, "
    "and "
    "that one is stopped too. Jobs wait in the queue for ever and the time is paid.",
    fix='Quantise, use a volume, or write env={"RUNPOD_INIT_TIMEOUT": "900"}.',
    environments=SHIPPED,
)
def start_in_time(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Models that take too long to load."""
    model = model_of(endpoint, project)
    if model is None or model.on_disk is None:
        return
    given = endpoint.env.get("RUNPOD_INIT_TIMEOUT", "")
    limit = float(given) if given.isdecimal() else PlatformDefaults().init_timeout
    pull = catalog.IMAGE_PULL_MB_PER_SECOND * 1e6
    rate, how = _reading_rate(endpoint)
    seconds = model.on_disk.value / rate + _IMAGE_BYTES / pull
    if seconds > limit:
        basis = f" ({FROM_NAME})" if model.is_from_name else ""
        yield Problem(
            f"a first start of `{endpoint.name}` takes about {seconds:.0f} s, and the platform gives it up after "
            f"{limit:g} s: {format_bytes(model.on_disk.value)} of weights at {how} {rate / 1e6:.0f} MB/s, and an "
            "image of "
            f"about {format_bytes(_IMAGE_BYTES)} at {pull / 1e6:.0f} MB/s{basis}"
        )


def _reading_rate(endpoint: Endpoint) -> tuple[float, str]:
    """Return how fast weights come, in bytes a second, and from where."""
    if endpoint.has_model_cache:
        return catalog.LOCAL_DISK_MB_PER_SECOND * 1e6, "the model cache's"
    if endpoint.spec.volumes:
        return catalog.VOLUME_MB_PER_SECOND.low * 1e6, "a volume's"
    return catalog.IMAGE_PULL_MB_PER_SECOND * 1e6, "a download's"
