"""Which code each endpoint depends on, read from the source without running it.

A worker imports the whole app file, but what its endpoint does follows from a part of it: the statement that
defines the endpoint, what that names, and the modules behind those names. Two readings, before and after a save,
say which endpoints changed. Where the source cannot tell, an endpoint counts as changed:

* Statements that run code at the top level (a call, `if`, `try`, `with`, `for`) belong to every endpoint, and so
  do definitions and imports that no endpoint names: they may be there for their effects.
* Other files count as a whole, with everything that they import themselves.
* Code that looks for code (`importlib`, `exec`, `sys.path`) depends on every Python file.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SEEKERS = frozenset(
    {"importlib", "import_module", "__import__", "exec", "eval", "globals", "runpy", "run_path", "pkgutil"}
)
"""Names whose use means that the source does not show which code runs."""
_SEEKING_ATTRIBUTES = frozenset({"sys.path", "sys.modules"})
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_BINDINGS = (*_DEFINITIONS, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.AugAssign)

Import = ast.Import | ast.ImportFrom


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What one endpoint depends on, as it was when it was read."""

    own: str
    """Digest of the statements of the app file that it needs."""
    files: Mapping[Path, str]
    """Digests of the project's other files that it imports."""
    is_open: bool = False
    """True when it may find more code at run time."""


def read_dependencies(app: Path, attributes: Sequence[str], *, root: Path) -> dict[str, Dependencies]:
    """Return the dependencies of an app's endpoints by the names of their variables.

    Args:
        app: The app's file.
        attributes: Variables of the endpoints; without any, the whole file is one endpoint, named "".
        root: The project's folder; nothing outside is looked at.

    Raises:
        SyntaxError: The app's file is not Python.
        OSError: It cannot be read.
    """
    project = _Project(app, root)
    source = app.read_text(encoding="utf-8", errors="replace")
    body = ast.parse(source, str(app)).body
    if not attributes:
        return {"": project.dependencies(app, [_read_statement(node, source) for node in body])}
    statements = [_read_statement(node, source) for node in body if _is_run_by_worker(node)]
    needed = {name: _reach(statements, name) for name in attributes}
    by_somebody = set().union(*needed.values())
    shared = {index for index, statement in enumerate(statements) if statement.is_effect or index not in by_somebody}
    shared |= _follow(statements, shared)
    return {
        name: project.dependencies(app, [statements[index] for index in sorted(indexes | shared)])
        for name, indexes in needed.items()
    }


@dataclass(frozen=True, slots=True)
class _Mentions:
    """What a piece of code names."""

    names: frozenset[str]
    imports: tuple[Import, ...]
    """However deep."""
    seeks_code: bool


@dataclass(frozen=True, slots=True)
class _Statement:
    """One statement at the top level of a module."""

    text: str
    binds: frozenset[str]
    mentions: _Mentions
    is_effect: bool
    """True when it does more than to bind names."""


def _read_mentions(tree: ast.AST) -> _Mentions:
    inside = list(ast.walk(tree))
    names = frozenset(_used_names(inside))
    attributes = {
        f"{node.value.id}.{node.attr}"
        for node in inside
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    imports = tuple(node for node in inside if isinstance(node, Import))
    modules = {alias.name.partition(".")[0] for node in imports for alias in node.names}
    modules |= {(node.module or "").partition(".")[0] for node in imports if isinstance(node, ast.ImportFrom)}
    return _Mentions(names, imports, bool((names | modules) & _SEEKERS or attributes & _SEEKING_ATTRIBUTES))


def _read_statement(node: ast.stmt, source: str) -> _Statement:
    mentions = _read_mentions(node)
    has_star = any(alias.name == "*" for item in mentions.imports for alias in item.names)
    return _Statement(
        text=_text_of(node, source),
        binds=frozenset(_bound_names(node)),
        mentions=mentions,
        is_effect=has_star or not isinstance(node, _BINDINGS) or _changes_a_value(node),
    )


def _changes_a_value(node: ast.stmt) -> bool:
    """True for `x.y = 1` and `x["y"] = 1`, which may reach far."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(target, ast.Attribute | ast.Subscript) for target in targets)


def _is_run_by_worker(node: ast.stmt) -> bool:
    """False for what a worker skips: docstrings, and `if __name__ == "__main__"`."""
    if isinstance(node, ast.If):
        return not ast.unparse(node.test).startswith("__name__ == '__main__'")
    return not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _text_of(node: ast.stmt, source: str) -> str:
    first = min([node.lineno, *(item.lineno for item in getattr(node, "decorator_list", ()))])
    lines = source.splitlines()[first - 1 : node.end_lineno]
    return "\n".join(line.rstrip() for line in lines)


def _used_names(inside: Iterable[ast.AST]) -> Iterator[str]:
    for node in inside:
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg | ast.AnnAssign):
            yield from _names_in_text(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _names_in_text(node.returns)


def _names_in_text(annotation: ast.expr | None) -> Iterator[str]:
    """Yield the names in an annotation that is written as a string."""
    for node in ast.walk(annotation) if annotation else ():
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"[^\W\d]\w*", node.value)


def _bound_names(node: ast.stmt) -> Iterator[str]:
    for item in [node] if isinstance(node, _DEFINITIONS) else ast.walk(node):
        if isinstance(item, _DEFINITIONS):
            yield item.name
        elif isinstance(item, Import):
            for alias in item.names:
                yield alias.asname or alias.name.partition(".")[0]
        elif isinstance(item, ast.Name) and not isinstance(item.ctx, ast.Load):
            yield item.id


def _reach(statements: Sequence[_Statement], name: str) -> set[int]:
    start = {index for index, statement in enumerate(statements) if name in statement.binds}
    return start | _follow(statements, start)


def _follow(statements: Sequence[_Statement], start: Iterable[int]) -> set[int]:
    """Return the indexes of what these statements name, directly and through others."""
    binders: dict[str, list[int]] = {}
    for index, statement in enumerate(statements):
        for name in statement.binds:
            binders.setdefault(name, []).append(index)
    found: set[int] = set()
    open_ends = list(start)
    while open_ends:
        for name in statements[open_ends.pop()].mentions.names:
            new = [index for index in binders.get(name, ()) if index not in found]
            found.update(new)
            open_ends += new
    return found


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the project, read."""

    digest: str
    mentions: _Mentions


class _Project:
    """The files that an app may import, each read once."""

    def __init__(self, app: Path, root: Path) -> None:
        self._folders = tuple(dict.fromkeys((app.parent, root, root / "src")))
        self._files: dict[Path, _File] = {}

    def dependencies(self, app: Path, statements: Sequence[_Statement]) -> Dependencies:
        """Return what these statements of the app depend on."""
        found: dict[Path, _File] = {}
        open_ends = [(app, node) for statement in statements for node in statement.mentions.imports]
        while open_ends:
            importer, node = open_ends.pop()
            for path in self._imported(importer, node):
                if path not in found and path != app:
                    found[path] = self._read(path)
                    open_ends += [(path, inner) for inner in found[path].mentions.imports]
        mentions = [statement.mentions for statement in statements] + [file.mentions for file in found.values()]
        return Dependencies(
            own=_digest("\n".join(statement.text for statement in statements).encode()),
            files={path: file.digest for path, file in sorted(found.items())},
            is_open=any(each.seeks_code for each in mentions),
        )

    def _read(self, path: Path) -> _File:
        if path not in self._files:
            self._files[path] = _read_file(path)
        return self._files[path]

    def _imported(self, importer: Path, node: Import) -> Iterator[Path]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from self._module_files(self._folders, alias.name)
            return
        folders: Sequence[Path] = self._folders
        if node.level:
            folders = (importer.parents[min(node.level, len(importer.parents)) - 1],)
        yield from self._module_files(folders, node.module or "")
        for alias in node.names:
            yield from self._module_files(folders, f"{node.module}.{alias.name}" if node.module else alias.name)

    def _module_files(self, folders: Sequence[Path], name: str) -> Iterator[Path]:
        """Yield the module's file and those of the packages around it, where they are the project's."""
        for folder in folders:
            place = folder
            candidates = [folder / "__init__.py"] if not name else []
            for part in filter(None, name.split(".")):
                place /= part
                candidates += [place / "__init__.py", place.with_name(f"{part}.py")]
            yield from (path for path in candidates if path.is_file())


def _read_file(path: Path) -> _File:
    try:
        source = path.read_bytes()
        tree = ast.parse(source, str(path))
    except (OSError, SyntaxError, ValueError):  # the import that follows says what is wrong with it
        return _File("unreadable", _Mentions(frozenset(), (), seeks_code=False))
    return _File(_digest(source), _read_mentions(tree))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
