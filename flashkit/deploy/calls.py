"""Which endpoints of an app may call which, read from the source without running it.

What the project's configuration lists goes before anything else. An orchestrator and a load-balanced endpoint get the
ids of all others: what they call may follow from data. Any other endpoint gets those that its source names, as a
variable or as text, in its own statement of the app file, in what that names, and in the modules of the project that
these import. An id too many does no harm; so where the source does not show which code runs, it counts as naming all.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flashkit.spec import EndpointSpec, Kind

_SEEKERS = frozenset({"importlib", "import_module", "__import__", "exec", "eval", "globals", "runpy"})
"""Names whose use means that the source does not show which code runs."""
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
Imports = ast.Import | ast.ImportFrom


def find_calls(
    app: Path, specs: Mapping[str, EndpointSpec], declared: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """Return for each endpoint the names of those whose ids it needs.

    Args:
        app: The app's file.
        specs: Its endpoints by the variables that hold them.
        declared: Calls that the project's configuration lists, by endpoint.
    """
    names = {variable: spec.name for variable, spec in specs.items()}
    reader = _SourceReader(app)
    found: dict[str, tuple[str, ...]] = {}
    for variable, spec in specs.items():
        others = [name for name in names.values() if name != spec.name]
        if spec.name in declared:
            called = set(declared[spec.name])
        elif spec.kind is Kind.ORCHESTRATOR or spec.load_balanced:
            called = set(others)
        else:
            words = reader.words_of(variable)
            called = {name for key, name in names.items() if words is None or key in words or name in words}
        found[spec.name] = tuple(name for name in others if name in called)
    return found


def dependency_order(calls: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the endpoints so that those that are called come before their callers, as far as that can be.

    In a circle, the one that lacks the fewest ids comes first.
    """
    order: list[str] = []
    left = dict(calls)
    while left:
        name = min(left, key=lambda item: sum(callee in left and callee != item for callee in left[item]))
        order.append(name)
        del left[name]
    return order


@dataclass(frozen=True, slots=True)
class _Statement:
    """One statement at the top level of the app."""

    binds: frozenset[str]
    words: frozenset[str]
    """Names and texts in it."""
    imports: tuple[Imports, ...]


class _SourceReader:
    """Reads an app's file once, and the project's modules as they are asked for."""

    def __init__(self, app: Path) -> None:
        self._folders = (app.parent, app.parent.parent)
        self._statements = [_read_statement(node) for node in _parse(app)]
        self._modules: dict[Path, _Statement] = {}

    def words_of(self, variable: str) -> frozenset[str] | None:
        """Return the words in an endpoint's code; None where the source does not tell."""
        reached = self._reach(variable)
        if not reached:
            return None  # it is not defined in the app's file
        words = frozenset[str]().union(*(statement.words for statement in reached))
        words |= self._words_of_modules(reached)
        return None if words & _SEEKERS else words

    def _reach(self, variable: str) -> list[_Statement]:
        """Return the statements that define the variable, and what those name."""
        start = [item for item in self._statements if variable in item.binds]
        if any(item.imports for item in start):
            return []
        reached: list[_Statement] = []
        open_ends = list(start)
        while open_ends:
            statement = open_ends.pop()
            if statement not in reached:
                reached.append(statement)
                open_ends += [item for item in self._statements if item.binds & statement.words]
        return reached

    def _words_of_modules(self, statements: Sequence[_Statement]) -> frozenset[str]:
        words: set[str] = set()
        seen: set[Path] = set()
        open_ends = [node for statement in statements for node in statement.imports]
        while open_ends:
            for path in self._files_of(open_ends.pop()):
                if path not in seen:
                    seen.add(path)
                    module = self._read(path)
                    words |= module.words
                    open_ends += module.imports
        return frozenset(words)

    def _files_of(self, node: Imports) -> Iterator[Path]:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            names = [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)]
        for name in filter(None, names):
            for folder in self._folders:
                place = folder.joinpath(*name.split("."))
                yield from (path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file())

    def _read(self, path: Path) -> _Statement:
        if path not in self._modules:
            self._modules[path] = _read_statement(ast.Module(_parse(path), []))
        return self._modules[path]


def _parse(path: Path) -> list[ast.stmt]:
    try:
        return ast.parse(path.read_bytes(), str(path)).body
    except (OSError, SyntaxError, ValueError):
        return []


def _read_statement(node: ast.AST) -> _Statement:
    inside = list(ast.walk(node))
    words: set[str] = set()
    for item in inside:
        if isinstance(item, ast.Name):
            words.add(item.id)
        elif isinstance(item, ast.Attribute):
            words.add(item.attr)
        elif isinstance(item, ast.Constant) and isinstance(item.value, str):
            words.add(item.value)
        elif isinstance(item, ast.alias):
            words.add(item.name.rpartition(".")[2])
    imports = tuple(item for item in inside if isinstance(item, ast.Import | ast.ImportFrom))
    return _Statement(frozenset(_bound(node)), frozenset(words), imports)


def _bound(node: ast.AST) -> Iterator[str]:
    for item in [node] if isinstance(node, _DEFINITIONS) else ast.walk(node):
        if isinstance(item, _DEFINITIONS):
            yield item.name
        elif isinstance(item, ast.alias):
            yield item.asname or item.name.partition(".")[0]
        elif isinstance(item, ast.Name) and not isinstance(item.ctx, ast.Load):
            yield item.id
