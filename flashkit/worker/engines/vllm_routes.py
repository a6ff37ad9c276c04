"""The routes of vLLM's that jobs ask most, called without the web framework around them.

FastAPI and its middlewares take longer for a completion than vLLM itself does until its model has it: they match routes,
count requests of a server that is none, and start five tasks to hear of a client that hangs up. The functions
behind the two routes are vLLM's, and so are requests, answers and errors. Whatever is not plain goes to the application:
other routes, requests that are refused, failures, and every request when an option has put a middleware in between.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from flashkit.errors import EngineError
from flashkit.worker.engines.asgi import encode_body, make_scope
from flashkit.worker.engines.engine import EngineRequest, EngineResponse
from flashkit.worker.engines.inputs import CHAT, COMPLETIONS

log = logging.getLogger(__name__)

_PATHS: Final = frozenset({CHAT, COMPLETIONS})
_PARAMETERS: Final = ["request", "raw_request"]
_NOT_FOR_JOBS: Final = frozenset({"CORSMiddleware", "PrometheusInstrumentatorMiddleware", "ScalingMiddleware"})
"""Middlewares for browsers, for counting requests, and for a cluster that changes its size."""


@dataclass(frozen=True, slots=True)
class _Route:
    function: Callable[[Any, Any], Awaitable[Any]]
    """vLLM's, without the decorators that listen to a client's connection and count."""
    model: Any
    """The pydantic model of a request."""


class DirectRoutes:
    """Answers requests by an application's own functions, where it can."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._routes = _find_routes(app)

    async def open(self, request: EngineRequest, headers: Mapping[str, str]) -> EngineResponse | None:
        """Return the response; None when the application has to make it."""
        route = self._routes.get(request.path) if request.method == "POST" else None
        if route is None:
            return None
        from starlette.requests import Request

        body = encode_body(request.body)
        raw = Request({**make_scope(request, body, headers), "app": self._app}, _receive_nothing)
        try:
            response = await _heeding(route.function(route.model.model_validate(orjson.loads(body)), raw))
        except Exception as exc:  # noqa: BLE001 - the application meets it again, and makes an answer of it
            log.debug("%s is left to the application: %r", request.path, exc)
            return None
        pieces = getattr(response, "body_iterator", None)
        stream = _whole(response.body) if pieces is None else _encoded(pieces, request.path)
        return EngineResponse(response.status_code, stream, dict(response.headers))


def _find_routes(app: Any) -> dict[str, _Route]:
    if {middleware.cls.__name__ for middleware in app.user_middleware} - _NOT_FOR_JOBS:
        return {}
    routes: dict[str, _Route] = {}
    for route in app.routes:
        path = getattr(route, "path", "")
        if path not in _PATHS or "POST" not in (getattr(route, "methods", None) or ()):
            continue
        function = inspect.unwrap(route.endpoint)
        model = typing.get_type_hints(function).get("request")
        if list(inspect.signature(function).parameters) == _PARAMETERS and hasattr(model, "model_validate"):
            routes[path] = _Route(function, model)
    return routes


async def _heeding(asked: Awaitable[Any]) -> Any:
    """Await what may answer a cancellation with "client disconnected", as vLLM does, and raise the cancellation."""
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    response = await asked
    if task and task.cancelling() > before:
        raise asyncio.CancelledError
    return response


async def _whole(body: bytes) -> AsyncGenerator[bytes, None]:
    yield bytes(body)


async def _encoded(pieces: AsyncIterator[str | bytes], path: str) -> AsyncGenerator[bytes, None]:
    """Yield a stream's bytes; closing this aborts the request."""
    try:
        async for piece in pieces:
            yield piece.encode() if isinstance(piece, str) else bytes(piece)
    except Exception as exc:
        reason = f"{type(exc).__name__}: {exc}"
        raise EngineError(f"the engine stopped in the middle of its answer to {path}: {reason}") from exc
    finally:
        aclose = getattr(pieces, "aclose", None)
        if aclose is not None:
            await aclose()


async def _receive_nothing() -> Any:
    """Never hear of a client that hangs up: a job that is given up cancels its request."""
    await asyncio.get_running_loop().create_future()
