"""What a load-balanced endpoint is made of: typed routes, mounted ASGI applications, and its start and end.

Plain values, collected while the app file is imported and checked at once, without a web framework. The worker
turns them into an application (`worker/http`).

A path has its parameters in braces: `/items/{item_id}`, and `{rest:path}` where slashes may follow. Each must be
a parameter of the function. The platform itself asks for `/ping`, so no route may have that path.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from flashkit.errors import DefinitionError
from flashkit.spec import EndpointSpec

ASGIApp = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[MutableMapping[str, Any]]],
        Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ],
    Awaitable[None],
]
PING_PATH: Final = "/ping"
METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
WEBSOCKET: Final = "WEBSOCKET"
"""Stands where other routes have their method."""
_PARAMETER: Final = re.compile(r"\{([^{}]*)\}")
_NAME_AND_CONVERTER: Final = re.compile(r"([a-zA-Z_]\w*)(:path)?")


@dataclass(frozen=True, slots=True)
class Route:
    """One function that answers requests."""

    method: str
    """An HTTP method, or `WEBSOCKET`."""
    path: str
    function: Callable[..., Any]
    where: str
    """Place of the function, as `app.py:12`."""

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def path_parameters(self) -> tuple[str, ...]:
        """Names of the parameters that the path holds."""
        return tuple(text.partition(":")[0] for text in _PARAMETER.findall(self.path))


@dataclass(frozen=True, slots=True)
class Mount:
    """An ASGI application that answers everything below a path."""

    path: str
    app: ASGIApp

    def __str__(self) -> str:
        return f"{self.path.rstrip('/')}/…"


@dataclass(slots=True)
class HttpDefinition:
    """One load-balanced endpoint; it grows while the app file is imported."""

    spec: EndpointSpec
    where: str
    routes: list[Route] = field(default_factory=list)
    mounts: list[Mount] = field(default_factory=list)
    setup: list[Callable[[], Any]] = field(default_factory=list)
    """Called in this order before the worker takes requests."""
    teardown: list[Callable[[], Any]] = field(default_factory=list)
    """Called in this order when it has answered its last request."""
    health: Callable[[], Any] | None = None
    """Says whether the worker is fit."""

    @property
    def signature(self) -> str:
        """The routes in a line, for listings."""
        shown = ", ".join(map(str, [*self.routes, *self.mounts]))
        return f"({shown})"

    @property
    def description(self) -> str:
        """Nothing: each route has a docstring of its own."""
        return ""

    def add_route(self, method: str, path: str, function: Callable[..., Any]) -> None:
        """Add a route.

        Raises:
            DefinitionError: The path or the function cannot work, or there is such a route.
        """
        route = Route(method, path, function, place_of(function))
        check_path(path, where=route.where)
        _check_function(route)
        for other in self.routes:
            if (other.method, _shape(other.path)) == (method, _shape(path)):
                raise DefinitionError(
                    f"endpoint {self.spec.name!r} has the route {other} twice: at {other.where} and at {route.where}",
                    hint="give each route its own method or path",
                    where=route.where,
                )
        self.routes.append(route)

    def add_mount(self, path: str, app: ASGIApp) -> None:
        """Add an ASGI application.

        Raises:
            DefinitionError: It is none, or the path is taken or cannot work.
        """
        if not callable(app):
            raise DefinitionError(
                f"{app!r} cannot be mounted: it is no ASGI application",
                hint="give the application object, FastAPI() or Starlette(...) for example",
                where=self.where,
            )
        check_path(path, where=self.where)
        path = path.rstrip("/")
        if any(mount.path == path for mount in self.mounts):
            raise DefinitionError(
                f"endpoint {self.spec.name!r} has two applications mounted at {path or '/'!r}",
                hint="mount each below a path of its own: .mount(app, '/v1')",
                where=self.where,
            )
        self.mounts.append(Mount(path, app))


def check_path(path: str, *, where: str) -> None:
    """Refuse what cannot be the path of a route or mount.

    Raises:
        DefinitionError: It cannot; the place is that of the route or mount.
    """
    if not isinstance(path, str) or not path.startswith("/") or "?" in path or "#" in path:
        raise DefinitionError(
            f"{path!r} is not the path of a route", hint='write it as "/items/{item_id}"', where=where
        )
    if path.rstrip("/") == PING_PATH:
        raise DefinitionError(
            f"the path {PING_PATH!r} belongs to the platform: it asks there whether a worker is ready",
            hint="decorate a function with .health to have a say in the answer, or use another path",
            where=where,
        )
    names: list[str] = _PARAMETER.findall(path)
    is_balanced = not set("{}") & set(_PARAMETER.sub("", path))
    if not is_balanced or not all(_NAME_AND_CONVERTER.fullmatch(name) for name in names):
        raise DefinitionError(
            f"the parameters of the path {path!r} cannot be read",
            hint="write them as {name}, or {name:path} for the rest with its slashes; types go into the function",
            where=where,
        )
    if len({name.partition(":")[0] for name in names}) != len(names):
        raise DefinitionError(f"the path {path!r} has a parameter twice", hint="give each its own name", where=where)


def _check_function(route: Route) -> None:
    function = route.function
    if not callable(function) or inspect.isclass(function):
        raise DefinitionError(f"{function!r} cannot answer {route}", hint="decorate a function", where=route.where)
    parameters: Mapping[str, inspect.Parameter] = inspect.signature(function).parameters
    missing = [name for name in route.path_parameters if name not in parameters]
    if missing:
        raise DefinitionError(
            f"the function for {route} has no parameter {missing[0]!r}",
            hint=f"add it, with its type: def {getattr(function, '__name__', 'function')}({missing[0]}: str)",
            where=route.where,
        )
    for parameter in parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise DefinitionError(
                f"parameter {parameter.name!r} of the function for {route} has no name that a request could send",
                hint="use ordinary named parameters",
                where=route.where,
            )


def place_of(function: Callable[..., Any]) -> str:
    """Return `app.py:12`, the function's first line."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}" if code else str(function)


def _shape(path: str) -> str:
    """Return the path with its parameters' names taken out: two of one shape take the same requests."""
    return _PARAMETER.sub("{}", path)
