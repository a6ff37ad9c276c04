"""FK5xx: handlers that check their input, leave the loop free, and answer for their health."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from flashkit.checks.project import Endpoint, Project
from flashkit.checks.rule import PRODUCTION, Problem, Severity, endpoint_rule, rule
from flashkit.protocol import REQUEST_BODY_LIMIT_BYTES, RUN_BODY_LIMIT_BYTES, RUNSYNC_BODY_LIMIT_BYTES
from flashkit.spec import Kind

_MANY_THREADS: Final = 16
"""Chosen: more threads than this compete for Python's lock instead of working side by side."""
_BYTES: Final = frozenset({"bytes", "bytearray", "ndarray", "NDArray"})
_MB: Final = 1024 * 1024
_BASE64: Final = 4 / 3
"""Bytes travel as base64 text, which is a third longer."""


@rule(
    "FK501",
    "handler-typed",
    Severity.WARNING,
    what="Every parameter of a handler has a type.",
    why="Input is checked against annotations before your code runs, and the caller gets the name of the wrong field. "
    "Without them a mistake surfaces as an exception somewhere in your code, after a cold start, as a failed job.",
    fix="Annotate the parameters: def answer(question: str, limit: int = 5) -> str.",
)
def handler_typed(project: Project) -> Iterator[Problem]:
    """Parameters without annotation."""
    for endpoint in project.endpoints:
        for handler in endpoint.code.handlers if endpoint.code else ():
            if handler.untyped:
                names = ", ".join(f"`{name}`" for name in handler.untyped)
                yield Problem(
                    f"{handler.name}() of endpoint `{endpoint.name}` takes {names} without a type", handler.place,
                    endpoint=endpoint.name,
                )  # fmt: skip


@rule(
    "FK502",
    "loop-not-blocked",
    Severity.WARNING,
    what="Async code waits in ways that let others work.",
    why="A blocking call in an async handler stops the whole worker: no other job goes on, no health question is "
    "answered, no cancellation arrives, and a session's lease may run out.",
    fix="Use the async form, or await asyncio.to_thread(...) for what has none.",
)
def loop_not_blocked(project: Project) -> Iterator[Problem]:
    """`time.sleep`, `requests` and the like in async functions."""
    for endpoint in project.endpoints:
        for call in endpoint.code.blocking if endpoint.code else ():
            yield Problem(
                f"{call.text}() in async code of `{endpoint.name}` stops the whole worker until it returns", call.place,
                fix=f"Use {call.instead}, or await asyncio.to_thread({call.text}, ...).", endpoint=endpoint.name,
            )  # fmt: skip


@endpoint_rule(
    "FK503",
    "waiting-jobs-share-worker",
    Severity.NOTE,
    what="A tool that mostly waits runs several jobs in one worker.",
    why="A job that waits for the network needs no processor. With concurrency 1 ten waiting jobs are ten workers, "
    "each "
    "paid and each with its cold start.",
    fix="Write concurrency=8 or more for an async handler that waits for others.",
)
def waiting_jobs_share_worker(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Async CPU tools with one job at a time."""
    del project
    spec = endpoint.spec
    if spec.kind is not Kind.CPU or spec.load_balanced or spec.concurrency > 1 or endpoint.code is None:
        return
    if any(handler.is_async and handler.awaits for handler in endpoint.code.handlers):
        yield Problem(f"endpoint `{endpoint.name}` awaits in an async handler, and a worker runs one job at a time")


@endpoint_rule(
    "FK504",
    "threads-not-many",
    Severity.WARNING,
    what="A sync handler runs in a moderate number of threads.",
    why="Each job of a sync handler has a thread. Threads that compute take turns at one lock, so all of them become "
    "slow "
    "together; and a thread cannot be stopped when its job times out.",
    fix="Make the handler async, or lower concurrency to 16 and let more workers share the load.",
)
def threads_not_many(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Sync handlers with large concurrency."""
    del project
    handlers = endpoint.code.handlers if endpoint.code else ()
    is_sync = any(not handler.is_async for handler in handlers)
    if is_sync and endpoint.spec.concurrency > _MANY_THREADS and endpoint.names_option("concurrency"):
        yield Problem(f"endpoint `{endpoint.name}` runs a sync handler in {endpoint.spec.concurrency} threads")


@endpoint_rule(
    "FK505",
    "payload-limits-known",
    Severity.NOTE,
    what="Endpoints that take or give bytes keep to the platform's limits.",
    why="A body over the limit is refused, a result over it makes the job FAILED after it ran. Bytes grow by a third "
    "on the "
    "way, as they travel as base64 text.",
    fix="Pass an address of the data, in S3 or on a volume, where it may be larger.",
)
def payload_limits_known(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Handlers with bytes in their annotations or schema."""
    del project
    handlers = endpoint.code.handlers if endpoint.code else ()
    has_bytes = any(_BYTES & handler.type_names for handler in handlers) or '"binary"' in json.dumps(endpoint.schema)
    if not has_bytes:
        return
    if endpoint.spec.load_balanced:
        limits = f"requests of {REQUEST_BODY_LIMIT_BYTES // _MB} MB"
    else:
        limits = (
            f"/run {RUN_BODY_LIMIT_BYTES // _MB} MB and /runsync {RUNSYNC_BODY_LIMIT_BYTES // _MB} MB, which is "
            f"{RUN_BODY_LIMIT_BYTES / _MB / _BASE64:.1f} and {RUNSYNC_BODY_LIMIT_BYTES / _MB / _BASE64:.0f} MB of bytes"
        )
    yield Problem(f"endpoint `{endpoint.name}` passes bytes, and the platform takes {limits}")


@endpoint_rule(
    "FK506",
    "health-answered",
    Severity.WARNING,
    what="A load-balanced endpoint says by itself whether it is fit.",
    why="The worker answers /ping with 200 as soon as the server listens. A worker whose model or database is gone "
    "then still "
    "gets its share of the requests, and fails them faster than the others answer.",
    fix="Decorate a function with @api.health that returns False or raises while the worker is not fit.",
    environments=PRODUCTION,
)
def health_answered(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Load-balanced endpoints without a health function."""
    del project
    if endpoint.spec.load_balanced and endpoint.code is not None and not endpoint.code.has_health:
        yield Problem(
            f"load-balanced endpoint `{endpoint.name}` has no health function: /ping says that the server listens"
        )


@endpoint_rule(
    "FK507",
    "health-path-exists",
    Severity.ERROR,
    what="The path that the platform asks for the worker's health is there.",
    why="A worker that answers it with 404 counts as unhealthy, never gets a request, and is replaced again and again.",
    fix="Take HEALTH_CHECK_PATH out, as /ping is always there, or add the route.",
)
def health_path_exists(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """`HEALTH_CHECK_PATH` without a route."""
    del project
    path = endpoint.env.get("HEALTH_CHECK_PATH")
    if path is None or not endpoint.spec.load_balanced or path == "/ping":
        return
    is_mounted = any(route.get("method") == "*" for route in endpoint.routes)
    if not is_mounted and not any(
        route.get("path") == path and route.get("method") == "GET" for route in endpoint.routes
    ):
        yield Problem(f"endpoint `{endpoint.name}` is asked for its health at {path}, and has no GET route there")
