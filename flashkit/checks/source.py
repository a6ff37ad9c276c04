"""The project's Python files as text that has been parsed: what names mean, and which functions reach which.

Nothing is imported. Names are followed through assignments at the top level and through imports of other files of the
project; what is decided at run time (`getattr`, `globals`, decorators of one's own) is not seen.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
MOST_STEPS: Final = 10
"""How many names are followed from one to the next."""
_BLOCKS: Final = (ast.If, ast.Try, ast.With, ast.For, ast.While)


@dataclass(frozen=True, slots=True)
class Import:
    """What an imported name stands for."""

    module: str
    """Dotted, without leading dots."""
    name: str | None = None
    """None where the name is the module itself."""

    @property
    def path(self) -> str:
        """Dotted name of the thing."""
        return self.module if self.name is None else f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class Module:
    """One file, parsed."""

    path: str
    """As people are told of it."""
    dotted: str
    """As the project imports it."""
    tree: ast.Module
    definitions: Mapping[str, Definition] = field(default_factory=dict)
    """Functions and classes at the top level."""
    assigned: Mapping[str, ast.expr] = field(default_factory=dict)
    """Values of names at the top level."""
    imports: Mapping[str, Import] = field(default_factory=dict)
    """Wherever they stand."""

    def statements(self) -> Iterator[ast.stmt]:
        """Yield the statements at the top level, those in `if`, `try` and the like too."""
        yield from _flat(self.tree.body)

    def origin(self, node: ast.expr) -> str | None:
        """Return the dotted name of what an expression names: `time.sleep` for `sleep` after an import from `time`."""
        match node:
            case ast.Name():
                imported = self.imports.get(node.id)
                return imported.path if imported else node.id
            case ast.Attribute():
                owner = self.origin(node.value)
                return None if owner is None else f"{owner}.{node.attr}"
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A function or class, and the file that it stands in."""

    module: Module
    node: Definition


class Sources:
    """All Python files of a project, each parsed once; what is not Python is left out.

    Args:
        texts: By path, as people are told of it.
        folder: The project's, in the same form.
    """

    def __init__(self, texts: Mapping[str, str], *, folder: str = ".") -> None:
        parsed = (_parse(path, text, folder) for path, text in texts.items() if path.endswith(".py"))
        self.modules: dict[str, Module] = {module.path: module for module in parsed if module is not None}
        self._by_name = {module.dotted: module for module in self.modules.values()}

    def reach(self, start: Sequence[Part], *, without: frozenset[Definition]) -> list[Part]:
        """Return the functions and classes that these name, and so on, themselves included."""
        found = {part.node: part for part in start}
        open_ends = list(start)
        while open_ends:
            part = open_ends.pop()
            for named in self._named_by(part):
                if named.node not in found and named.node not in without:
                    found[named.node] = named
                    open_ends.append(named)
        return list(found.values())

    def resolve(self, module: Module, node: ast.expr) -> Part | None:
        """Return the function or class of the project that an expression names."""
        if isinstance(node, ast.Name) and (local := module.definitions.get(node.id)) is not None:
            return Part(module, local)
        home, _, name = (module.origin(node) or "").rpartition(".")
        other = self._by_name.get(home)
        return Part(other, other.definitions[name]) if other and name in other.definitions else None

    def _named_by(self, part: Part) -> Iterator[Part]:
        for node in ast.walk(part.node):
            if isinstance(node, ast.Name | ast.Attribute) and (named := self.resolve(part.module, node)) is not None:
                yield named


def number_of(node: ast.expr | None, module: Module, *, depth: int = 0) -> float | None:
    """Return the number that an expression always has: `30`, `2 * MINUTE`; None where the source does not tell."""
    if depth > MOST_STEPS:  # a name that is made of itself
        return None
    depth += 1
    match node:
        case ast.Constant(value=bool()):
            return None
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            number = number_of(operand, module, depth=depth)
            return None if number is None else -number
        case ast.BinOp(left=left, op=operator, right=right):
            known = number_of(left, module, depth=depth), number_of(right, module, depth=depth)
            return _computed(known[0], operator, known[1])
        case ast.Name(id=name) if name in module.assigned:
            return number_of(module.assigned[name], module, depth=depth)
    return None


def _computed(left: float | None, operator: ast.operator, right: float | None) -> float | None:
    if left is None or right is None:
        return None
    match operator:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div() if right:
            return left / right
    return None


def words_of(annotation: ast.expr | None) -> Iterator[str]:
    """Yield the names in an annotation, those in quoted ones too."""
    for node in ast.walk(annotation) if annotation else ():
        match node:
            case ast.Name(id=name):
                yield name
            case ast.Attribute(attr=name):
                yield name
            case ast.Constant(value=str() as text):
                yield from text.replace("[", " ").replace("]", " ").replace(",", " ").replace("|", " ").split()


def _parse(path: str, text: str, folder: str) -> Module | None:
    try:
        tree = ast.parse(text, path)
    except (SyntaxError, ValueError):  # whoever imports the file is told; a file that nobody imports may be a draft
        return None
    dotted = _dotted_name(path, folder)
    statements = list(_flat(tree.body))
    return Module(
        path,
        dotted,
        tree,
        definitions={node.name: node for node in statements if isinstance(node, Definition)},
        assigned=dict(_assignments(statements)),
        imports=dict(_imports(tree, dotted, is_package=path.endswith("__init__.py"))),
    )


def _dotted_name(path: str, folder: str) -> str:
    inside = path.removeprefix(f"{folder}/") if folder != "." else path
    inside = inside.removesuffix(".py").removesuffix("/__init__").removeprefix("src/")
    return inside.replace("/", ".")


def _flat(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        if isinstance(statement, _BLOCKS):
            for name in ("body", "orelse", "finalbody"):
                yield from _flat(getattr(statement, name, ()))
            for handler in getattr(statement, "handlers", ()):
                yield from _flat(handler.body)


def _assignments(statements: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    for statement in statements:
        targets: Sequence[ast.expr] = ()
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets = (statement.target,)
        value = getattr(statement, "value", None)
        yield from ((target.id, value) for target in targets if isinstance(target, ast.Name) and value is not None)


def _imports(tree: ast.Module, dotted: str, *, is_package: bool) -> Iterator[tuple[str, Import]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, Import(alias.name)) if alias.asname else _top(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, dotted, is_package=is_package)
            yield from ((alias.asname or alias.name, Import(module, alias.name)) for alias in node.names)


def _top(name: str) -> tuple[str, Import]:
    """`import a.b` binds `a`; `a.b.c` then is an attribute of an attribute."""
    first = name.partition(".")[0]
    return first, Import(first)


def _absolute(node: ast.ImportFrom, dotted: str, *, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    package = dotted.split(".") if is_package else dotted.split(".")[:-1]
    above = package[: len(package) - (node.level - 1)]
    return ".".join([*above, *([node.module] if node.module else [])])
