"""The routes of vLLM's that jobs ask most, called without the web framework around them.

FastAPI and its middlewares take longer for a completion than vLLM itself does until its model has it: they match
routes, count requests of a server that is none, and start five tasks to hear of a client that hangs up. The functions
behind the two routes are vLLM's, and so are requests, answers and errors. Whatever is not plain goes to the
application: other routes, requests of another shape, and everything where an option or a plugin stands in between.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import orjson

from flashkit.errors import EngineError
from flashkit.worker.engines.asgi import encode_body, make_scope
from flashkit.worker.engines.engine import EngineRequest, EngineResponse
from flashkit.worker.engines.inputs import CHAT, COMPLETIONS

log = logging.getLogger(__name__)

_HOME: Final = "vllm.entrypoints."
_PATHS: Final = frozenset({CHAT, COMPLETIONS})
_PARAMETERS: Final = ["request", "raw_request"]
_DEPENDENCIES: Final = frozenset({"validate_json_request"})
"""It looks at a header that is ours."""
_MIDDLEWARES: Final = frozenset({"CORSMiddleware", "PrometheusInstrumentatorMiddleware", "ScalingMiddleware"})
"""For browsers, for counting requests, and for a cluster that changes its size."""
_OPTIONS_IN_BETWEEN: Final = ("enable_elastic_ep", "enable_server_load_tracking")
"""With these, vLLM does something before or after its function."""


@dataclass(frozen=True, slots=True)
class _Route:
    function: Callable[[Any, Any], Coroutine[Any, Any, Any]]
    """vLLM's, without the decorators that listen to a client's connection and count."""
    model: Any
    """The pydantic model of a request."""


class DirectRoutes:
    """Answers requests by an application's own functions, where it can.

    Args:
        app: vLLM's FastAPI application.
        home: The package whose functions are called directly; others may do more than is known here.
    """

    def __init__(self, app: Any, *, home: str = _HOME) -> None:
        self._app = app
        try:
            self._routes = _find_routes(app, home)
        except Exception:
            log.exception("vLLM's routes cannot be told apart")
            self._routes = {}
        if not self._routes:
            log.info("chats and completions go through the whole of vLLM's application")

    async def open(self, request: EngineRequest, headers: Mapping[str, str]) -> EngineResponse | None:
        """Return the response; None when the application has to make it, and nothing was begun."""
        route = self._routes.get(request.path) if request.method == "POST" else None
        if route is None:
            return None
        from starlette.requests import Request

        body = encode_body(request.body)
        try:
            asked = route.model.model_validate(orjson.loads(body))
        except Exception:  # noqa: BLE001 - nothing was begun, and the application makes an answer of it
            return None
        raw = Request({**make_scope(request, body, headers), "app": self._app}, _receive_nothing)
        try:
            response = await _in_task(route.function(asked, raw))
        except Exception as exc:  # noqa: BLE001 - whatever it raises, vLLM has an answer
            response = await self._refusal(raw, exc)
        pieces = getattr(response, "body_iterator", None)
        stream = _whole(response.body) if pieces is None else _Stream(pieces, request.path)
        return EngineResponse(response.status_code, stream, dict(response.headers))

    async def _refusal(self, raw: Any, exc: Exception) -> Any:
        """Return what the application answers to an exception; asked again, it would do the work twice.

        Raises:
            EngineError: It has no answer.
        """
        handlers = self._app.exception_handlers
        found = next((each for each in type(exc).__mro__ if each in handlers), None)
        if found is None:
            reason = f"{type(exc).__name__}: {exc}"
            raise EngineError(f"the engine stopped before it answered to {raw.url.path}: {reason}") from exc
        if found is Exception:
            log.error("%s: %s: %s", raw.url.path, type(exc).__name__, exc, exc_info=exc)
        return await handlers[found](raw, exc)


def _find_routes(app: Any, home: str) -> dict[str, _Route]:
    options = getattr(app.state, "args", None)
    if any(getattr(options, name, False) for name in _OPTIONS_IN_BETWEEN):
        return {}
    if {middleware.cls.__name__ for middleware in app.user_middleware} - _MIDDLEWARES:
        return {}
    routes: dict[str, _Route] = {}
    for route in app.routes:
        path = getattr(route, "path", "")
        if path not in _PATHS or "POST" not in (getattr(route, "methods", None) or ()):
            continue
        dependencies = [each.dependency for each in getattr(route, "dependencies", ())]
        functions = [*_layers(route.endpoint), *dependencies]
        is_known = all(each.__globals__["__name__"].startswith(home) for each in functions)
        if is_known and {each.__name__ for each in dependencies} <= _DEPENDENCIES:
            function = inspect.unwrap(route.endpoint)
            model = typing.get_type_hints(function).get("request")
            if list(inspect.signature(function).parameters) == _PARAMETERS and hasattr(model, "model_validate"):
                routes[path] = _Route(function, model)
    return routes


def _layers(function: Any) -> Iterator[Any]:
    """Yield a function and all that its decorators wrapped."""
    while function is not None:
        yield getattr(function, "__func__", function)
        function = getattr(function, "__wrapped__", None)


async def _in_task(asked: Coroutine[Any, Any, Any]) -> Any:
    """Await what may answer a cancellation with "client disconnected", as vLLM does, and be cancelled all the same."""
    task = asyncio.create_task(asked)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # known from here on: nobody is left to hear of it
        raise
    return task.result()


async def _whole(body: bytes) -> AsyncGenerator[bytes, None]:
    yield bytes(body)


class _Stream(AsyncIterator[bytes]):
    """A stream's bytes; closing it aborts the request."""

    def __init__(self, pieces: Any, path: str) -> None:
        self._pieces = pieces
        self._path = path
        self._is_reading = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        self._is_reading = True
        try:
            piece = await anext(self._pieces)
        except StopAsyncIteration:
            raise
        except Exception as exc:
            reason = f"{type(exc).__name__}: {exc}"
            raise EngineError(f"the engine stopped in the middle of its answer to {self._path}: {reason}") from exc
        finally:
            self._is_reading = False
        return piece.encode() if isinstance(piece, str) else bytes(piece)

    async def aclose(self) -> None:
        """Abort what still runs; a read that is under way does so itself when it is cancelled."""
        if not self._is_reading:
            await self._pieces.aclose()


async def _receive_nothing() -> Any:
    """Never hear of a client that hangs up: a job that is given up cancels its request."""
    await asyncio.get_running_loop().create_future()
