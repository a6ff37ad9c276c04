"""FK7xx: what keeps an app running, and shows what it does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from flashkit.checks.project import Endpoint, LocalRun, Project
from flashkit.checks.rule import PRODUCTION, SHIPPED, Problem, Severity, endpoint_rule, rule
from flashkit.spec import Kind

_STATE: Final = "FLASHKIT_STATE"
_TRACING: Final = ("OTEL_EXPORTER_OTLP_", "FLASHKIT_TRACES_URL", "LANGSMITH_TRACING", "LANGCHAIN_TRACING")
"""Begin the names of variables that say where traces go."""
_TRACING_OFF: Final = {"OTEL_TRACES_EXPORTER": "none", "OTEL_SDK_DISABLED": "true"}


@endpoint_rule(
    "FK701",
    "state-is-shared",
    Severity.ERROR,
    what="In production, an orchestrator keeps its sessions in a store that every worker reaches.",
    why="Without FLASHKIT_STATE each worker has a file of its own on its own disk. When the worker is gone, so are its "
    "sessions: nothing is resumed, and steps that were finished run again.",
    fix='Write env={"FLASHKIT_STATE": "{{ RUNPOD_SECRET_redis_url }}"} with the address of a Redis or Valkey.',
    environments=PRODUCTION,
)
def state_is_shared(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Orchestrators without a shared store."""
    del project
    if endpoint.spec.kind is not Kind.ORCHESTRATOR:
        return
    url = endpoint.env.get(_STATE, "")
    if not url:
        yield Problem(f"orchestrator `{endpoint.name}` has no {_STATE}, so each worker keeps its sessions to itself")
    elif url.startswith(("sqlite:", "file:")):
        yield Problem(
            f"orchestrator `{endpoint.name}` keeps its sessions in {url}, a file that other workers do not see"
        )


@rule(
    "FK702",
    "tracing-on",
    Severity.NOTE,
    what="Traces of the app go somewhere.",
    why="An agent that was slow or wrong an hour ago can only be explained by what it did: which step took the time, "
    "what "
    "the model was asked, which tool failed. Logs of workers that are gone do not tell.",
    fix='Point the endpoints to a collector: env={"OTEL_EXPORTER_OTLP_ENDPOINT": "https://..."}.',
    environments=SHIPPED,
)
def tracing_on(project: Project) -> Iterator[Problem]:
    """Apps in which no endpoint says where its traces go."""
    meant = [each for each in project.endpoints if not each.is_plain_handler]
    if meant and not any(_sends_traces(endpoint) for endpoint in meant):
        first = next((each for each in meant if each.spec.kind is Kind.ORCHESTRATOR), meant[0])
        yield Problem("no endpoint has a variable that says where traces go (OTEL_EXPORTER_OTLP_ENDPOINT)", first.place)


def _sends_traces(endpoint: Endpoint) -> bool:
    is_off = any(endpoint.env.get(name, "").lower() == value for name, value in _TRACING_OFF.items())
    return not is_off and any(name.startswith(_TRACING) for name in endpoint.env)


@endpoint_rule(
    "FK703",
    "local-run-seen",
    Severity.WARNING,
    what="A job of each endpoint has completed on this machine with the code as it is now.",
    why="A handler that never ran here fails on Runpod after an image was built, pushed and pulled: a quarter of an "
    "hour "
    "for a typo. What counts is one finished job of this very code.",
    fix="Run `flashkit dev` and send a job with `flashkit run`, or run tests that use the `platform` fixture.",
    environments=SHIPPED,
)
def local_run_seen(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Endpoints without a finished local job."""
    del project
    match endpoint.local_run:
        case LocalRun.NONE:
            yield Problem(f"no job of `{endpoint.name}` has completed on this machine")
        case LocalRun.OUTDATED:
            yield Problem(f"the code of `{endpoint.name}` has changed since its last completed job on this machine")
