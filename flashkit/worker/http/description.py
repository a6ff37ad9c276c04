"""What a load-balanced endpoint shows of its routes: how each is called, with an example that it takes."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from flashkit.http_routes import WEBSOCKET, HttpDefinition, Route
from flashkit.spec import EndpointSpec
from flashkit.worker.http.arguments import RouteArguments


def describe_routes(definition: HttpDefinition) -> list[dict[str, Any]]:
    """Return the routes and mounts as JSON, in the order of their definition.

    Raises:
        DefinitionError: A route has a type that is not defined or cannot be checked.
    """
    routes = [_describe(route, definition.spec) for route in definition.routes]
    mounts = [{"method": "*", "path": mount.path or "/", "example": mount.path or "/"} for mount in definition.mounts]
    return [*routes, *mounts]


def _describe(route: Route, spec: EndpointSpec) -> dict[str, Any]:
    arguments = RouteArguments(route, spec)
    example = arguments.contract.example_input()
    values = dict(example) if isinstance(example, dict) else {}
    path = route.path
    for name in route.path_parameters:
        text = str(values.pop(name, name))
        path = path.replace(f"{{{name}}}", text).replace(f"{{{name}:path}}", text)
    described: dict[str, Any] = {
        "method": route.method,
        "path": route.path,
        "signature": arguments.definition.signature,
        "description": arguments.definition.description,
        "where": route.where,
    }
    if arguments.takes_body:
        return described | {"example": path, "body": arguments.example_body(values)}
    query = f"?{urlencode(values, doseq=True)}" if values and route.method != WEBSOCKET else ""
    return described | {"example": path + query}
