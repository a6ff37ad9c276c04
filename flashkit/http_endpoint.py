"""`HttpEndpoint`: the side of a decorator call that makes a load-balanced endpoint of routes and applications.

`api = cpu_endpoint(name="api")` can be used in two ways, never in both: as a decorator it makes queue-based
endpoints; with its first route, mount or `setup` it becomes one load-balanced endpoint. Route functions stay what
they are and can be called as before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, Self, TypeVar

from flashkit.errors import DefinitionError
from flashkit.http_routes import WEBSOCKET, ASGIApp, HttpDefinition, place_of
from flashkit.spec import EndpointSpec

if TYPE_CHECKING:
    from flashkit.http_client import HttpAnswer

F = TypeVar("F", bound=Callable[..., Any])


class HttpEndpoint:
    """Routes, mounted applications, and what runs before and after them."""

    definition: HttpDefinition
    """Set by the first route or mount."""

    def __init__(self, define_http: Callable[[], HttpDefinition]) -> None:
        self._define_http = define_http
        self._queue_endpoint: str | None = None
        """Name of an endpoint that was made by using this as a decorator."""

    @property
    def is_load_balanced(self) -> bool:
        """True once it has a route or a mounted application."""
        return "definition" in vars(self)

    @property
    def spec(self) -> EndpointSpec:
        """The checked description: compute, bounds, timeouts."""
        return self._opened().spec

    @property
    def name(self) -> str:
        """The endpoint's name in URLs."""
        return self.spec.name

    def get(self, path: str) -> Callable[[F], F]:
        """Answer GET requests with the decorated function; its other parameters come from the query."""
        return self._route("GET", path)

    def post(self, path: str) -> Callable[[F], F]:
        """Answer POST requests with the decorated function; its other parameters come from the JSON body.

        A parameter that is a pydantic model, dataclass or TypedDict, the only one of its kind, is the whole
        body, and the rest come from the query. Otherwise the body is an object with the parameters by name.
        """
        return self._route("POST", path)

    def put(self, path: str) -> Callable[[F], F]:
        """Answer PUT requests with the decorated function, whose parameters come as with `post`."""
        return self._route("PUT", path)

    def patch(self, path: str) -> Callable[[F], F]:
        """Answer PATCH requests with the decorated function, whose parameters come as with `post`."""
        return self._route("PATCH", path)

    def delete(self, path: str) -> Callable[[F], F]:
        """Answer DELETE requests with the decorated function, whose parameters come as with `get`."""
        return self._route("DELETE", path)

    def websocket(self, path: str) -> Callable[[F], F]:
        """Serve WebSockets with the decorated async function; it gets a Starlette `WebSocket`."""
        return self._route(WEBSOCKET, path)

    def mount(self, app: ASGIApp, path: str = "/") -> Self:
        """Let an ASGI application (FastAPI, Starlette, any) answer everything below a path; routes go first.

        Its lifespan runs: the worker is ready when its start-up is over.
        """
        self._opened().add_mount(path, app)
        return self

    def setup(self, function: F) -> F:
        """Call the decorated function, sync or async, before the worker takes requests: to load a model, say."""
        self._opened().setup.append(function)
        return function

    def teardown(self, function: F) -> F:
        """Call the decorated function, sync or async, when the worker has answered its last request."""
        self._opened().teardown.append(function)
        return function

    def health(self, function: F) -> F:
        """Ask the decorated function, sync or async, whenever the platform asks if the worker is fit.

        While it returns False or raises, the worker gets no requests.
        """
        definition = self._opened()
        if definition.health is not None:
            raise DefinitionError(
                f"endpoint {definition.spec.name!r} has two functions for its health",
                hint="let one call the other",
            )
        definition.health = function
        return function

    async def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        worker: str | None = None,
    ) -> HttpAnswer:
        """Send a request to this endpoint on the configured platform and return the whole answer.

        Raises:
            PlatformError: The endpoint could not be reached, or the connection broke.
        """
        from flashkit.http_client import HttpClient

        async with HttpClient(self.name) as client:
            return await client.request(method, path, json=json, params=params, headers=headers, worker=worker)

    async def stream(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        worker: str | None = None,
    ) -> AsyncIterator[Any]:
        """Send a request to this endpoint on the configured platform and yield what it yields, as it comes."""
        from flashkit.http_client import HttpClient

        async with HttpClient(self.name) as client:
            async for item in client.stream(method, path, json=json, params=params, headers=headers, worker=worker):
                yield item

    def _route(self, method: str, path: str) -> Callable[[F], F]:
        if callable(path):
            raise DefinitionError(
                f"@{method.lower()} was given a function instead of a path",
                hint=f'write @api.{method.lower()}("/path")',
                where=place_of(path),
            )
        definition = self._opened()

        def decorate(function: F) -> F:
            definition.add_route(method, path, function)
            return function

        return decorate

    def _opened(self) -> HttpDefinition:
        """Return the definition, which makes this a load-balanced endpoint from now on."""
        if self._queue_endpoint is not None:
            raise DefinitionError(
                f"{self._queue_endpoint!r} is a queue-based endpoint, so it cannot have routes too",
                hint="an endpoint has a queue or routes: call the decorator again, under another name, for the other",
            )
        if not self.is_load_balanced:
            self.definition = self._define_http()
        return self.definition

    def _note_queue_endpoint(self, name: str) -> None:
        """Take note that this was used as a decorator.

        Raises:
            DefinitionError: It has routes.
        """
        if self.is_load_balanced:
            raise DefinitionError(
                f"endpoint {self.definition.spec.name!r} has routes, so it cannot handle jobs too",
                hint="an endpoint has routes or a queue: call the decorator again, under another name, for the other",
            )
        self._queue_endpoint = name
