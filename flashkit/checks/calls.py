"""What an endpoint's code does at run time, as far as its source shows: calls, fan-outs, and blocking calls."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from flashkit.checks.project import Blocking, Call, FanOut, Place
from flashkit.checks.source import MOST_STEPS, Module, Part, Sources, number_of

_CLIENT_CALLS: Final = frozenset({"remote", "spawn", "stream"})
_BLOCKING: Final[Mapping[str, str]] = {
    "time.sleep": "await asyncio.sleep(...)",
    "subprocess.run": "await asyncio.create_subprocess_exec(...)",
    "subprocess.call": "await asyncio.create_subprocess_exec(...)",
    "subprocess.check_call": "await asyncio.create_subprocess_exec(...)",
    "subprocess.check_output": "await asyncio.create_subprocess_exec(...)",
    "os.system": "await asyncio.create_subprocess_shell(...)",
    "urllib.request.urlopen": "aiohttp or httpx's AsyncClient",
    **{f"requests.{method}": "aiohttp or httpx's AsyncClient" for method in ("get", "post", "put", "patch", "delete",
                                                                             "head", "request")},
    **{f"httpx.{method}": "httpx.AsyncClient" for method in ("get", "post", "put", "patch", "delete", "head",
                                                             "request", "stream")},
    "socket.create_connection": "await asyncio.open_connection(...)",
}  # fmt: skip
"""Calls that wait without giving the loop back, and what does the same for async code."""
_NESTED: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads calls in code that knows these endpoints by these names."""

    sources: Sources
    endpoints: Mapping[str, str]
    """Endpoints' names by the variables that hold them."""

    def calls(self, parts: Sequence[Part]) -> Iterator[Call]:
        """Yield the calls of endpoints."""
        for part in parts:
            for node in ast.walk(part.node):
                if isinstance(node, ast.Call) and (callee := self._callee(node, part.module)):
                    yield self._read_call(node, callee, part.module)

    def fan_outs(self, parts: Sequence[Part]) -> Iterator[FanOut]:
        """Yield for each `gather` how many calls of each endpoint it makes."""
        for part in parts:
            for node in ast.walk(part.node):
                if isinstance(node, ast.Call) and _last_name(node.func) == "gather":
                    yield from self._read_gather(node, part)

    def blocking(self, parts: Sequence[Part]) -> Iterator[Blocking]:
        """Yield calls in async code that stop the loop."""
        functions = ((part.module, node) for part in parts for node in ast.walk(part.node))
        for module, node in functions:
            if isinstance(node, ast.AsyncFunctionDef):
                for call in _own_calls(node):
                    name = module.origin(call.func) or ""
                    if name in _BLOCKING:
                        yield Blocking(name, Place(module.path, call.lineno, call.end_lineno or 0), _BLOCKING[name])

    def _callee(self, node: ast.Call, module: Module) -> str | None:
        """Return the name of the endpoint that is called: `session.call(writer, ...)`, `writer.remote(...)`."""
        if not isinstance(node.func, ast.Attribute):
            return None
        if node.func.attr == "call" and node.args:
            return self._endpoint(node.args[0], module)
        return self._endpoint(node.func.value, module) if node.func.attr in _CLIENT_CALLS else None

    def _endpoint(self, node: ast.expr, module: Module) -> str | None:
        origin = module.origin(node) if isinstance(node, ast.Name | ast.Attribute) else None
        return self.endpoints.get(origin.rpartition(".")[2]) if origin else None

    def _read_call(self, node: ast.Call, callee: str, module: Module) -> Call:
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        timeout = given.get("timeout")
        is_none = timeout is None or (isinstance(timeout, ast.Constant) and timeout.value is None)
        return Call(
            callee,
            Place(module.path, node.lineno, node.end_lineno or 0),
            is_session_call=_last_name(node.func) == "call",
            has_timeout=not is_none or None in given,  # `**options` may bring one
            timeout=number_of(timeout, module),
        )

    def _read_gather(self, node: ast.Call, part: Part) -> Iterator[FanOut]:
        counts: Counter[str] = Counter()
        is_open: set[str] = set()
        for argument in node.args:
            for callee, count in self._counted(argument, part):
                counts[callee] += count or 1
                is_open |= {callee} if count is None else set()
        place = Place(part.module.path, node.lineno, node.end_lineno or 0)
        yield from (FanOut(callee, place, count, is_open=callee in is_open) for callee, count in counts.items())

    def _counted(self, node: ast.expr, part: Part, depth: int = 0) -> Iterator[tuple[str, int | None]]:
        """Yield the endpoints that an expression calls, and how often; None where that follows from data."""
        depth += 1
        match node:
            case _ if depth > MOST_STEPS:
                return
            case ast.Starred(value=value):
                yield from self._counted(value, part, depth)
            case ast.GeneratorExp(elt=element, generators=loops) | ast.ListComp(elt=element, generators=loops):
                lengths = [_length(loop.iter, part) for loop in loops]
                for callee, count in self._counted(element, part, depth):
                    yield callee, _product([count, *lengths])
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                for element in elements:
                    yield from self._counted(element, part, depth)
            case ast.Name(id=name) if (given := _local_value(name, part)) is not None:
                yield from self._counted(given, part, depth)
            case ast.Call():
                yield from self._counted_call(node, part)

    def _counted_call(self, node: ast.Call, part: Part) -> Iterator[tuple[str, int | None]]:
        if callee := self._callee(node, part.module):
            yield callee, 1
        elif helper := self.sources.resolve(part.module, node.func):  # a coroutine of one's own that makes the calls
            yield from ((call.callee, 1) for call in self.calls([helper]))


def waits(parts: Sequence[Part]) -> bool:
    """Return whether the code waits for anything."""
    waiting = (ast.Await, ast.AsyncFor, ast.AsyncWith)
    return any(isinstance(node, waiting) for part in parts for node in ast.walk(part.node))


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _own_calls(function: ast.AsyncFunctionDef) -> Iterator[ast.Call]:
    """Yield the calls in the function itself, not those in functions that are defined in it."""
    open_ends: list[ast.AST] = [*function.body]
    while open_ends:
        node = open_ends.pop()
        if isinstance(node, _NESTED):
            continue
        if isinstance(node, ast.Call):
            yield node
        open_ends += ast.iter_child_nodes(node)


def _length(node: ast.expr, part: Part) -> int | None:
    match node:
        case ast.List(elts=elements) | ast.Tuple(elts=elements) | ast.Set(elts=elements):
            return None if any(isinstance(each, ast.Starred) for each in elements) else len(elements)
        case ast.Call(func=ast.Name(id="range"), args=[stop]):
            number = number_of(stop, part.module)
            return None if number is None else int(number)
        case ast.Name(id=name) if (value := _local_value(name, part)) is not None:
            return None if isinstance(value, ast.Name) else _length(value, part)
    return None


def _local_value(name: str, part: Part) -> ast.expr | None:
    """Return what a name was given in the function, or at the top level; None where it is not that simple."""
    values = [
        node.value
        for node in ast.walk(part.node)
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    ]
    if values:
        return values[0] if len(values) == 1 else None
    arguments = getattr(part.node, "args", None)
    is_argument = arguments is not None and any(
        each.arg == name for each in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    )
    return None if is_argument else part.module.assigned.get(name)


def _product(counts: Sequence[int | None]) -> int | None:
    product = 1
    for count in counts:
        if count is None:
            return None
        product *= count
    return product
