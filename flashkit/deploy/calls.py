"""Which endpoints of an app may call which, read from the source without running it.

What the project's configuration lists goes before anything else. An orchestrator and a load-balanced endpoint get the
ids of all others: what they call may follow from data. Any other endpoint gets those that its source names, as a
variable or as text, in its own statement of the app file, in what that names, and in the modules of the project that
these import. An id too many does no harm; so where the source does not show which code runs, it counts as naming all.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
            code = reader.code_of(variable)
            called = {name for key, name in names.items() if code is None or key in code.names or name in code.texts}
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
class _Code:
    """What a piece of code says."""

    names: frozenset[str] = frozenset()
    """Variables."""
    attributes: frozenset[tuple[str, str]] = frozenset()
    """Attributes with the names that they are taken of."""
    texts: frozenset[str] = frozenset()
    """Whole strings."""
    imports: tuple[Imports, ...] = ()

    def joined(self, others: Sequence[_Code]) -> _Code:
        """Return what all of them say."""
        names = self.names.union(*(other.names for other in others))
        return _Code(names, texts=self.texts.union(*(other.texts for other in others)))


@dataclass(frozen=True, slots=True)
class _Statement:
    """One statement at the top level of the app."""

    binds: frozenset[str]
    code: _Code
    is_import: bool


class _SourceReader:
    """Reads an app's file once, and the project's modules as they are asked for."""

    def __init__(self, app: Path) -> None:
        self._folders = (app.parent, app.parent.parent)
        self._statements = [
            _Statement(frozenset(_bound(node)), _read_code(node), isinstance(node, Imports)) for node in _parse(app)
        ]
        self._imports = {node for item in self._statements for node in item.code.imports if item.is_import}
        self._modules: dict[Path, _Code] = {}

    def code_of(self, variable: str) -> _Code | None:
        """Return what an endpoint's code says; None where the source does not tell."""
        reached = self._reach(variable)
        if not reached:
            return None  # it is not defined in the app's file
        code = _Code().joined([self._with_members(item) for item in (*reached, *self._modules_of(reached))])
        return None if code.names & _SEEKERS else code

    def _with_members(self, code: _Code) -> _Code:
        """Return the code with what it takes of the project's modules among its names: `tools.find`, not `re.find`."""
        own = {name for node in self._imports | set(code.imports) for name in _bound(node) if any(self._files_of(node))}
        members = frozenset(name for module, name in code.attributes if module in own)
        return replace(code, names=code.names | members)

    def _reach(self, variable: str) -> list[_Code]:
        """Return the statements that define the variable, and what those name."""
        start = [item for item in self._statements if variable in item.binds]
        if any(item.is_import for item in start):
            return []
        reached: list[_Statement] = []
        open_ends = list(start)
        while open_ends:
            statement = open_ends.pop()
            if statement not in reached:
                reached.append(statement)
                open_ends += [item for item in self._statements if item.binds & statement.code.names]
        return [item.code for item in reached]

    def _modules_of(self, statements: Sequence[_Code]) -> list[_Code]:
        """Return the modules of the project that these statements import, and those that they import."""
        found: dict[Path, _Code] = {}
        open_ends = [node for statement in statements for node in statement.imports]
        while open_ends:
            for path in self._files_of(open_ends.pop()):
                if path not in found:
                    found[path] = self._read(path)
                    open_ends += found[path].imports
        return list(found.values())

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

    def _read(self, path: Path) -> _Code:
        if path not in self._modules:
            self._modules[path] = _read_code(ast.Module(_parse(path), []))
        return self._modules[path]


def _parse(path: Path) -> list[ast.stmt]:
    try:
        return ast.parse(path.read_bytes(), str(path)).body
    except (OSError, SyntaxError, ValueError):
        return []


def _read_code(node: ast.AST) -> _Code:
    inside = list(ast.walk(node))
    names = {item.id for item in inside if isinstance(item, ast.Name)}
    attributes = {
        (item.value.id, item.attr)
        for item in inside
        if isinstance(item, ast.Attribute) and isinstance(item.value, ast.Name)
    }
    names |= {item.name.rpartition(".")[2] for item in inside if isinstance(item, ast.alias)}
    texts = {item.value for item in inside if isinstance(item, ast.Constant) and isinstance(item.value, str)}
    imports = tuple(item for item in inside if isinstance(item, ast.Import | ast.ImportFrom))
    return _Code(frozenset(names), frozenset(attributes), frozenset(texts), imports)


def _bound(node: ast.AST) -> Iterator[str]:
    for item in [node] if isinstance(node, _DEFINITIONS) else ast.walk(node):
        if isinstance(item, _DEFINITIONS):
            yield item.name
        elif isinstance(item, ast.alias):
            yield item.asname or item.name.partition(".")[0]
        elif isinstance(item, ast.Name) and not isinstance(item.ctx, ast.Load):
            yield item.id
