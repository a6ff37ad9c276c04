"""Endpoints as the app describes them, joined with what their source shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flashkit.checks.calls import Reader, waits
from flashkit.checks.declarations import (
    Declaration,
    choose,
    find_declarations,
    has_health_function,
    helper_functions,
    read_handler,
    route_functions,
)
from flashkit.checks.project import Code, Endpoint, Handler, LocalRun, Place
from flashkit.checks.source import Part, Sources
from flashkit.spec import EndpointSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """One endpoint, as its app tells of it."""

    spec: EndpointSpec
    app: str
    """The app's file, as people are told of it."""
    attribute: str = ""
    """Variable that holds it; none in a plain handler file."""
    where: str = ""
    """Place of its definition, as `app.py:12`."""
    schema: Mapping[str, Any] = field(default_factory=dict)
    routes: Sequence[Mapping[str, Any]] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables of its workers, for which its own go before."""
    deployed_env: Mapping[str, str] = field(default_factory=dict)
    """Variables that go before its own."""
    plain: frozenset[str] = frozenset()
    has_model_cache: bool = False
    local_run: LocalRun = LocalRun.NONE


def read_endpoints(described: Sequence[Described], sources: Sources) -> tuple[Endpoint, ...]:
    """Return the endpoints with everything that is known of them."""
    declarations = find_declarations(sources)
    chosen = [_declaration_of(each, declarations) for each in described]
    known = {each.attribute: each.spec.name for each in described if each.attribute}
    names = {found.attribute: each.spec.name for each, found in zip(described, chosen, strict=True) if found} | known
    reader = Reader(sources, names)
    handlers = frozenset(found.target for found in declarations if found.target is not None)
    return tuple(
        Endpoint(
            spec=each.spec,
            place=found.place if found else _told_place(each, sources),
            code=_read_code(found, reader, handlers) if found else None,
            schema=each.schema,
            routes=tuple(each.routes),
            env={**each.env, **each.spec.env, **each.deployed_env},
            plain=each.plain,
            has_model_cache=each.has_model_cache,
            is_plain_handler=not each.attribute,
            local_run=each.local_run,
        )
        for each, found in zip(described, chosen, strict=True)
    )


def _declaration_of(described: Described, declarations: Sequence[Declaration]) -> Declaration | None:
    if not described.attribute:
        return None
    file_name, line = _split(described)
    return choose(declarations, attribute=described.attribute, file_name=file_name, line=line, name=described.spec.name)


def _told_place(described: Described, sources: Sources) -> Place:
    """Return the place that the endpoint tells, in the file of the project that has this name."""
    file_name, line = _split(described)
    files = [described.app, *sources.modules]
    path = next((path for path in files if path.rpartition("/")[2] == file_name), None)
    return Place(path, line) if path else Place(described.app)


def _split(described: Described) -> tuple[str, int]:
    file_name, _, line = described.where.rpartition(":")
    return (file_name, int(line)) if line.isdecimal() else (described.app.rpartition("/")[2], 1)


def _read_code(declaration: Declaration, reader: Reader, handlers: frozenset[Any]) -> Code:
    sources = reader.sources
    own = (
        [Part(declaration.module, declaration.target)] if declaration.target else route_functions(declaration, sources)
    )
    start = own if declaration.target else [*own, *helper_functions(declaration, sources)]
    reached = sources.reach(start, without=handlers)
    return Code(
        options=declaration.options,
        is_complete=declaration.is_complete,
        handlers=tuple(handler for part in own if (handler := _handler(part, sources, handlers))),
        calls=tuple(reader.calls(reached)),
        fan_outs=tuple(reader.fan_outs(reached)),
        blocking=tuple(reader.blocking(reached)),
        has_health=has_health_function(declaration, sources),
    )


def _handler(part: Part, sources: Sources, handlers: frozenset[Any]) -> Handler | None:
    found = read_handler(part)
    return replace(found, awaits=waits(sources.reach([part], without=handlers))) if found else None
