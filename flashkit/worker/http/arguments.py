"""From a request to a function's arguments: path, query and JSON body, checked together against the types.

Everything is put into one object by parameter name and goes through the same `Contract` as a job's input, so a
request is refused in the same words as a job. Text from paths and queries becomes numbers, dates and so on as
pydantic reads them. A parameter that nobody knows is refused, unless the function takes `**more`.
"""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from starlette.datastructures import QueryParams
from starlette.requests import HTTPConnection

from flashkit.errors import DefinitionError, InputError
from flashkit.handler import Contract, Definition, is_model, parse_json
from flashkit.http_routes import WEBSOCKET, Route
from flashkit.spec import EndpointSpec

_BODY_METHODS: Final = ("POST", "PUT", "PATCH")
_MANY: Final = (list, set, frozenset, tuple, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Set)
_UNIONS: Final = (typing.Union, types.UnionType)


class RouteArguments:
    """What one route's function takes, and where in a request it is.

    Raises:
        DefinitionError: A type is not defined, cannot be checked, or cannot come with such a request.
    """

    def __init__(self, route: Route, spec: EndpointSpec) -> None:
        plain = Definition(spec=spec, target=route.function, function=route.function, where=route.where)
        hints = Contract(plain).annotations
        self.request_parameters = [name for name, hint in hints.items() if _is_connection(hint) and name != "return"]
        self.definition = replace(plain, supplied=frozenset(self.request_parameters))
        self.contract = Contract(self.definition)
        self._route = route
        self._names = [parameter.name for parameter in self.definition.parameters]
        self._many = {name for name in self._names if _takes_many(hints.get(name))}
        self._models = [name for name in self._names if is_model(hints.get(name)) and name not in route.path_parameters]
        self._check()
        self.contract.prepare()

    @property
    def takes_body(self) -> bool:
        """True when the body of a request is read as JSON; otherwise it is left to the function."""
        is_for_parameters = any(name not in self._route.path_parameters for name in self._names)
        return self._route.method in _BODY_METHODS and is_for_parameters

    def parse(self, path: Mapping[str, Any], query: QueryParams, body: bytes) -> dict[str, Any]:
        """Return the function's arguments, without the request itself.

        Raises:
            InputError: Something is missing, unknown or ill-typed.
        """
        asked = {name: query.getlist(name) if name in self._many else query[name] for name in query}
        sent = self._read_body(body) if self.takes_body else {}
        if len(self._names) == 1 and self._models:
            return self.contract.parse_input(sent if self.takes_body else asked)
        if self.takes_body and len(self._models) == 1:
            return self.contract.parse_input({**asked, self._models[0]: sent, **path})
        if not isinstance(sent, dict):
            raise InputError(
                f"the body of {self._route} must be a JSON object, not {type(sent).__name__}",
                hint=f"it takes {self.definition.signature}",
            )
        return self.contract.parse_input({**asked, **sent, **path})

    def example_body(self, values: Mapping[str, Any]) -> Any:
        """Return the body that brings these values."""
        is_whole = len(self._models) == 1 and len(self._names) > 1
        return values.get(self._models[0], {}) if is_whole else dict(values)

    def _read_body(self, body: bytes) -> Any:
        if not body:
            return {}
        try:
            return parse_json(body)
        except ValueError as exc:
            raise InputError(f"the body is not JSON: {exc}", hint="send JSON, encoded as UTF-8") from exc

    def _check(self) -> None:
        route = self._route
        if self._models and len(self._names) > 1 and route.method not in _BODY_METHODS:
            raise DefinitionError(
                f"parameter {self._models[0]!r} of {route} is an object, and such a request has no body",
                hint="use post, put or patch, or take the fields one by one",
                where=route.where,
            )
        if route.method == WEBSOCKET and not (
            self.request_parameters and inspect.iscoroutinefunction(inspect.unwrap(route.function))
        ):
            raise DefinitionError(
                f"the function for {route} must be async and take the connection",
                hint="from starlette.websockets import WebSocket; async def live(websocket: WebSocket) -> None: ...",
                where=route.where,
            )


def _is_connection(hint: Any) -> bool:
    """True for Starlette's and FastAPI's `Request` and `WebSocket`."""
    return inspect.isclass(hint) and issubclass(hint, HTTPConnection)


def _takes_many(hint: Any) -> bool:
    if typing.get_origin(hint) in _UNIONS:
        return any(_takes_many(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Annotated:
        return _takes_many(typing.get_args(hint)[0])
    return (typing.get_origin(hint) or hint) in _MANY
