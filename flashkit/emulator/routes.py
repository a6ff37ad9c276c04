"""The client's side of the platform: Runpod's job API, route by route, and a few routes of our own.

Documented bodies are kept to the letter. Ours are `GET /` (which endpoints there are and where), `GET
/v2/{endpoint}/requests` (its body is undocumented: here, the list of jobs) and `GET /_/state` (everything, for
the command line and tests).

The job API, which is asked thousands of times a second, is a table of actions; all other routes are Starlette's.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from flashkit.emulator.admission import Admission
from flashkit.emulator.answers import (
    RouteUnknown,
    describe_job,
    describe_worker,
    error_response,
    http_status,
    internal_error,
    json_response,
    send_body,
    summarise_job,
)
from flashkit.emulator.bodies import ClientGone, read_body
from flashkit.emulator.dashboard import prefers_page, show_page
from flashkit.emulator.dispatch import Dispatcher
from flashkit.emulator.faults import FAULT_HEADER, FaultPlan, read_job_faults
from flashkit.emulator.load_balancing.entry import PATH_PREFIX
from flashkit.emulator.openai import submit_relayed
from flashkit.emulator.platform import Job
from flashkit.emulator.rate_limits import RateLimiter
from flashkit.emulator.submissions import read_query_ms, read_submission, read_wait_ms
from flashkit.emulator.supervisor import LocalEndpoint
from flashkit.errors import ErrorReport, FlashkitError
from flashkit.protocol import RUN_BODY_LIMIT_BYTES, RUNSYNC_BODY_LIMIT_BYTES, TTL_MS, PlatformDefaults

_CLIENT_GONE: Final = 499
"""Nobody reads it: the status for requests whose sender hung up."""
_GET: Final = ("GET", "HEAD")


class _Call(NamedTuple):
    """A request of the job API: `/v2/{endpoint}/{action}`, or with something behind it."""

    endpoint: str
    action: str
    rest: str | None
    """What follows the action and its slash; None without that slash."""


class _Action(NamedTuple):
    methods: tuple[str, ...]
    handler: Callable[[Request, str, str], Awaitable[ASGIApp]]
    """Gets the endpoint's name and what follows the action."""
    rest: Literal["none", "job", "path"] = "none"

    def takes(self, rest: str | None) -> bool:
        """Return True when this may follow the action."""
        if self.rest == "job":
            return bool(rest) and "/" not in (rest or "")
        return (rest is None) == (self.rest == "none")


@dataclass(frozen=True, slots=True)
class RouteOptions:
    """What the client routes may do."""

    defaults: PlatformDefaults
    allow_remote_webhooks: bool = False
    has_rate_limits: bool = False
    """Clients that send more than Runpod takes get 429."""


class ClientRoutes:
    """Serves the job API of every endpoint."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        endpoints: Mapping[str, LocalEndpoint],
        admission: Admission,
        options: RouteOptions,
        faults: FaultPlan,
        problems: Mapping[str, ErrorReport] | None = None,
        resolve: Callable[[str], str] = str,
        more_routes: Sequence[BaseRoute] = (),
    ) -> None:
        self._dispatcher = dispatcher
        self._platform = dispatcher.platform
        self._endpoints = endpoints
        self._admission = admission
        self._options = options
        self._problems = {} if problems is None else problems
        self._resolve = resolve
        self._more_routes = more_routes
        self._faults = faults
        per_worker = options.defaults.rate_limit_per_worker
        self._limiter = RateLimiter(per_worker=per_worker) if options.has_rate_limits else None
        self._job_api = {
            "run": _Action(("POST",), self._run),
            "runsync": _Action(("POST",), self._runsync),
            "status": _Action(_GET, self._status, "job"),
            "stream": _Action(_GET, self._stream, "job"),
            "cancel": _Action(("POST",), self._cancel, "job"),
            "retry": _Action(("POST",), self._retry, "job"),
            "purge-queue": _Action(("POST",), self._purge),
            "health": _Action(_GET, self._health),
            "requests": _Action(_GET, self._requests),
            "openai": _Action((*_GET, "POST"), self._relay, "path"),
        }

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Serve a request of the job API; False for any other."""
        call = _read_call(scope["path"])
        action = None if call is None else self._job_api.get(call.action)
        if call is None or action is None or not action.takes(call.rest):
            return False
        request = Request(scope, receive, send)
        try:
            response = await self._answer(request, call, action)
            await response(scope, receive, send)
        except FlashkitError as exc:
            refusal = self._refusal(exc, job_id=call.rest if action.rest == "job" else None)
            await refusal(scope, receive, send)
        except ClientGone:
            await send_body(send, _CLIENT_GONE, b"")
        except Exception:
            with contextlib.suppress(RuntimeError):  # the response had begun already
                await error_response(internal_error(), status=500)(scope, receive, send)
            raise
        return True

    def application(self) -> Starlette:
        """Return the other routes as an ASGI application."""
        application = Starlette(
            routes=[
                Route("/_/state", self._state, methods=["GET"]),
                *self._more_routes,
                Route("/", self._index, methods=["GET"]),
            ],
            exception_handlers={
                FlashkitError: self._refuse,
                HTTPException: self._refuse_route,
                ClientGone: _hang_up,
                Exception: _confess,
            },
        )
        application.router.redirect_slashes = False  # a redirect would turn a POST into a second request
        return application

    async def _answer(self, request: Request, call: _Call, action: _Action) -> ASGIApp:
        if request.method not in action.methods:
            allowed = ", ".join(action.methods)
            return _no_route(request, allowed, status=405, headers={"Allow": allowed})
        self._admission.check(request)
        name = self._resolve(call.endpoint)
        if name not in self._endpoints:
            raise _unknown_endpoint(name, self._endpoints, self._problems)
        if self._endpoints[name].spec.load_balanced and call.action != "health":
            raise _has_no_queue(name)
        if self._limiter is None:
            return await action.handler(request, name, call.rest or "")
        running = self._platform.health(name)["workers"]["running"]
        with self._limiter.admit(name, call.action, running_workers=running):
            return await action.handler(request, name, call.rest or "")

    async def _run(self, request: Request, endpoint: str, _: str) -> Response:
        job = await self._submit(request, endpoint, sync=False)
        return json_response({"id": job.id, "status": job.status.value})

    async def _runsync(self, request: Request, endpoint: str, _: str) -> Response:
        wait_ms = read_wait_ms(request.query_params.get("wait"))
        job = await self._submit(request, endpoint, sync=True)
        await self._wait_for_end(job, wait_ms / 1000)
        return json_response(describe_job(job))

    async def _submit(self, request: Request, endpoint: str, *, sync: bool) -> Job:
        limit_bytes = RUNSYNC_BODY_LIMIT_BYTES if sync else RUN_BODY_LIMIT_BYTES
        body = await read_body(request.receive, limit_bytes=limit_bytes)
        submission = read_submission(body, allow_remote_webhooks=self._options.allow_remote_webhooks)
        own_faults = read_job_faults(request.headers.get(FAULT_HEADER))
        job = self._dispatcher.submit(endpoint, submission, sync=sync, size_bytes=len(body))
        self._faults.bring(job.id, own_faults)
        return job

    async def _wait_for_end(self, job: Job, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not job.status.is_final and not self._dispatcher.is_closing and loop.time() < end:
            await self._dispatcher.wait_for_job(job, seconds=end - loop.time())

    def _job(self, endpoint: str, job_id: str) -> Job:
        return self._dispatcher.apply(self._platform.job, endpoint, job_id)

    async def _status(self, request: Request, endpoint: str, job_id: str) -> Response:
        ttl = request.query_params.get("ttl")
        if ttl is None:
            return json_response(describe_job(self._job(endpoint, job_id)))
        seconds = read_query_ms("ttl", ttl, 1, TTL_MS[1]) / 1000
        job = self._dispatcher.apply(self._platform.keep_result, endpoint, job_id, seconds=seconds)
        return json_response(describe_job(job))

    async def _stream(self, request: Request, endpoint: str, job_id: str) -> Response:
        chunks = self._dispatcher.apply(self._platform.read_stream, endpoint, job_id)
        status = self._job(endpoint, job_id).status.value
        return json_response({"status": status, "stream": [{"output": chunk} for chunk in chunks]})

    async def _cancel(self, request: Request, endpoint: str, job_id: str) -> Response:
        job = self._dispatcher.apply(self._platform.cancel, endpoint, job_id)
        return json_response({"id": job.id, "status": job.status.value})

    async def _retry(self, request: Request, endpoint: str, job_id: str) -> Response:
        job = self._dispatcher.apply(self._platform.retry, endpoint, job_id)
        return json_response({"id": job.id, "status": job.status.value})

    async def _purge(self, request: Request, endpoint: str, _: str) -> Response:
        removed = self._dispatcher.apply(self._platform.purge, endpoint)
        return json_response({"removed": removed, "status": "completed"})

    async def _health(self, request: Request, endpoint: str, _: str) -> Response:
        return json_response(self._platform.health(endpoint))

    async def _requests(self, request: Request, endpoint: str, _: str) -> Response:
        jobs = [summarise_job(job) for job in self._platform.jobs(endpoint)]
        return json_response({"requests": jobs})

    async def _relay(self, request: Request, endpoint: str, path: str) -> ASGIApp:
        return await submit_relayed(self._dispatcher, request, endpoint, path)

    async def _index(self, request: Request) -> Response:
        if prefers_page(request):
            return await show_page(request)
        base = str(request.base_url).rstrip("/")
        urls = {
            name: {"url": f"{base}{PATH_PREFIX}{name}"}
            if local.spec.load_balanced
            else {"url": f"{base}/v2/{name}", "openai": f"{base}/v2/{name}/openai/v1"}
            for name, local in self._endpoints.items()
        }
        return json_response({"platform": "flashkit", "endpoints": urls})

    async def _state(self, request: Request) -> Response:
        self._admission.check(request)
        return json_response({name: self._describe_endpoint(name) for name in self._endpoints})

    def _describe_endpoint(self, name: str) -> dict[str, Any]:
        return {
            "jobs": [summarise_job(job) for job in self._platform.jobs(name)],
            "workers": [describe_worker(worker) for worker in self._platform.workers(name)],
            "health": self._platform.health(name),
        }

    def _refusal(self, exc: FlashkitError, *, job_id: str | None = None) -> Response:
        return error_response(exc.report, status=http_status(exc, self._options.defaults), request_id=job_id)

    async def _refuse(self, request: Request, exc: Exception) -> Response:
        if not isinstance(exc, FlashkitError):
            raise exc
        return self._refusal(exc, job_id=request.path_params.get("job_id"))

    async def _refuse_route(self, request: Request, exc: Exception) -> Response:
        if not isinstance(exc, HTTPException):
            raise exc
        allowed = (exc.headers or {}).get("Allow")
        return _no_route(request, allowed, status=exc.status_code, headers=exc.headers)


def _read_call(path: str) -> _Call | None:
    """Return what a path asks of the job API; None when it is not `/v2/{endpoint}/{action}`, with or without a rest."""
    parts = path.split("/", 4)
    if len(parts) < 4 or parts[1] != "v2" or not parts[2]:  # noqa: PLR2004
        return None
    return _Call(parts[2], parts[3], parts[4] if len(parts) > 4 else None)  # noqa: PLR2004


def _no_route(
    request: Request, allowed: str | None, *, status: int, headers: Mapping[str, str] | None = None
) -> Response:
    report = ErrorReport(
        code="method_not_allowed" if allowed else RouteUnknown.code,
        message=f"this platform has no route {request.method} {request.url.path}",
        type=RouteUnknown.__name__,
        hint=f"use {allowed} for this path" if allowed else "GET / lists the endpoints and their URLs",
    )
    return error_response(report, status=status, headers=headers)


def _unknown_endpoint(name: str, known: Iterable[str], problems: Mapping[str, ErrorReport]) -> RouteUnknown:
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1)
    meant = f"did you mean {nearest[0]!r}? " if nearest else ""
    broken = "".join(f"{file} does not import: {report.message}; " for file, report in problems.items())
    return RouteUnknown(
        f"there is no endpoint {name!r} on this platform",
        hint=f"{broken}{meant}known endpoints: {', '.join(names) or 'none'}",
        details={"endpoints": names},
    )


def _has_no_queue(name: str) -> RouteUnknown:
    return RouteUnknown(
        f"endpoint {name!r} is load-balanced: it has no queue and no jobs",
        hint=f"send requests to its own paths, below {PATH_PREFIX}{name}/",
    )


async def _hang_up(request: Request, exc: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)


async def _confess(request: Request, exc: Exception) -> Response:
    """Answer for a fault of the emulator itself; the traceback goes to the log, not to the client."""
    return error_response(internal_error(), status=500)
