"""Where an app's endpoints are declared: the decorators' calls, found in the source as text."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from flashkit.checks.project import Handler, Place
from flashkit.checks.source import Definition, FunctionNode, Module, Part, Sources, words_of

DECORATORS: Final = frozenset({"cpu_endpoint", "gpu_endpoint", "embedding_endpoint", "orchestrator_endpoint"})
_ROUTES: Final = frozenset({"get", "post", "put", "patch", "delete", "websocket"})
_LIFECYCLE: Final = frozenset({"setup", "warmup", "teardown"})
_FILLED_IN: Final = frozenset({"self", "cls", "session", "embed", "engine"})
"""Parameters that the worker fills in; nobody sends them."""


@dataclass(frozen=True, slots=True, eq=False)
class Declaration:
    """One call of a decorator, and what it decorates."""

    module: Module
    attribute: str
    """Variable that holds the endpoint."""
    call: ast.Call
    place: Place
    target: Definition | None = None
    """None for endpoints of routes and those that are their engine."""

    @property
    def options(self) -> frozenset[str]:
        """Options that the call names."""
        return frozenset(keyword.arg for keyword in self.call.keywords if keyword.arg)

    @property
    def is_complete(self) -> bool:
        """False where `**options` may hold more."""
        return all(keyword.arg for keyword in self.call.keywords)

    @property
    def name(self) -> str | None:
        """The endpoint's name, where the call spells it out."""
        values = [keyword.value for keyword in self.call.keywords if keyword.arg == "name"]
        return str(values[0].value) if values and isinstance(values[0], ast.Constant) else None


def find_declarations(sources: Sources) -> list[Declaration]:
    """Return every declaration of the project."""
    return [found for module in sources.modules.values() for found in _declarations_in(module)]


def choose(
    declarations: Sequence[Declaration], *, attribute: str, file_name: str, line: int, name: str
) -> Declaration | None:
    """Return the declaration of an endpoint, None where it is made in a way that the source does not show.

    Args:
        declarations: Those of the project.
        attribute: Variable of the app's file that holds it.
        file_name: File that the endpoint says it is from, without folders.
        line: The line there.
        name: The endpoint's name.
    """
    here = [found for found in declarations if found.place.file.rpartition("/")[2] == file_name]
    at_line = [found for found in here if found.attribute == attribute] or [
        found for found in here if line in _lines_of(found)
    ]
    return next(iter(at_line), None) or next((found for found in declarations if found.name == name), None)


def route_functions(declaration: Declaration, sources: Sources) -> list[Part]:
    """Return the functions that answer requests of a load-balanced endpoint."""
    return [part for part, use in _uses(declaration, sources) if use in _ROUTES]


def helper_functions(declaration: Declaration, sources: Sources) -> list[Part]:
    """Return the functions that a load-balanced endpoint calls besides: set-up, end and health."""
    return [part for part, use in _uses(declaration, sources) if use not in _ROUTES]


def has_health_function(declaration: Declaration, sources: Sources) -> bool:
    """Return whether a function of the user's answers for the worker's health."""
    if any(use == "health" for _, use in _uses(declaration, sources)):
        return True
    calls = (
        node for module in sources.modules.values() for node in ast.walk(module.tree) if isinstance(node, ast.Call)
    )
    return any(_use_of(call.func, declaration) == "health" for call in calls)


def read_handler(part: Part) -> Handler | None:
    """Return what the source shows of the function, or the class's method, that handles jobs; None without one."""
    function = _method_of(part.node) if isinstance(part.node, ast.ClassDef) else part.node
    if function is None:
        return None
    listed = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    sent = [argument for argument in listed if argument.arg not in _FILLED_IN]
    annotations = [*(argument.annotation for argument in sent), function.returns]
    return Handler(
        function.name,
        Place(part.module.path, function.lineno),
        is_async=isinstance(function, ast.AsyncFunctionDef),
        awaits=False,
        untyped=tuple(argument.arg for argument in sent if argument.annotation is None),
        type_names=frozenset(word for annotation in annotations for word in words_of(annotation)),
    )


def _declarations_in(module: Module) -> Iterator[Declaration]:
    made: dict[str, ast.Call] = {}
    for statement in module.statements():
        if isinstance(statement, Definition):
            for decorator in statement.decorator_list:
                call = _decorator_call(decorator, module)
                if call is None and isinstance(decorator, ast.Name):
                    call = made.get(decorator.id)
                if call is not None:
                    yield Declaration(module, statement.name, call, _place(module, decorator), statement)
        elif isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            yield from _assigned(statement, module, made)


def _assigned(
    statement: ast.Assign | ast.AnnAssign, module: Module, made: dict[str, ast.Call]
) -> Iterator[Declaration]:
    """Read `llm = gpu_endpoint(...)` and `tool = cpu_endpoint(...)(function)`."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    value, target = statement.value, None
    call = _decorator_call(value, module)
    if call is None and isinstance(value, ast.Call) and (call := _decorator_call(value.func, module)) and value.args:
        decorated = value.args[0]
        target = module.definitions.get(decorated.id) if isinstance(decorated, ast.Name) else None
    for name in (each.id for each in targets if isinstance(each, ast.Name)):
        if call is not None:
            made[name] = call
            yield Declaration(module, name, call, _place(module, statement), target)


def _decorator_call(node: ast.expr | None, module: Module) -> ast.Call | None:
    if not isinstance(node, ast.Call):
        return None
    return node if (module.origin(node.func) or "").rpartition(".")[2] in DECORATORS else None


def _place(module: Module, node: ast.expr | ast.stmt) -> Place:
    return Place(module.path, node.lineno, node.end_lineno or node.lineno)


def _lines_of(declaration: Declaration) -> range:
    last = declaration.target.end_lineno if declaration.target else None
    return range(declaration.place.line, (last or declaration.place.last_line) + 1)


def _uses(declaration: Declaration, sources: Sources) -> Iterator[tuple[Part, str]]:
    """Yield the functions that are decorated with a method of the endpoint, and the method's name."""
    for module in sources.modules.values():
        for node in module.definitions.values():
            for decorator in node.decorator_list:
                use = _use_of(decorator.func if isinstance(decorator, ast.Call) else decorator, declaration)
                if use is not None:
                    yield Part(module, node), use


def _use_of(node: ast.expr, declaration: Declaration) -> str | None:
    """Return `get` for `api.get`."""
    if not isinstance(node, ast.Attribute):
        return None
    owner = node.value
    name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", None)
    return node.attr if name == declaration.attribute else None


def _method_of(node: ast.ClassDef) -> FunctionNode | None:
    methods = {each.name: each for each in node.body if isinstance(each, FunctionNode)}
    public = [name for name in methods if not name.startswith("_") and name not in _LIFECYCLE]
    chosen = "run" if "run" in methods else public[0] if len(public) == 1 else ""
    return methods.get(chosen)
