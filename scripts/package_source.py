"""What the reference pages are made of: Markdown, docstrings of attributes, and error codes found in the source."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from flashkit.errors import FlashkitError

ROOT = Path(__file__).parent.parent
NOTICE = "<!-- Written by scripts/docs from the code: change the code, not this page. -->\n"


class Undocumented(Exception):
    """The code has something that the reference cannot describe."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def code(value: object) -> str:
    """Return the value as inline code."""
    return f"`{value}`"


def on_one_line(text: str) -> str:
    """Return one paragraph of a docstring on one line."""
    return re.sub(r"\s+", " ", text).strip()


def capitalise(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def page(title: str, intro: str, *sections: str) -> str:
    """Return a whole page."""
    return "\n".join([NOTICE, f"# {title}\n", intro.strip() + "\n", *sections]).rstrip() + "\n"


def attribute_docs(body: Sequence[ast.stmt]) -> dict[str, str]:
    """Return docstrings of assignments, by name, for a module's or class's body."""
    found = {}
    for statement, following in zip(body, [*body[1:], ast.Pass()], strict=True):
        name = assigned_name(statement)
        if name and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            found[name] = on_one_line(str(following.value.value))
    return found


def assigned_name(statement: ast.stmt) -> str | None:
    """Return the name that a statement assigns to, if it is one."""
    target = statement.target if isinstance(statement, ast.AnnAssign) else None
    if isinstance(statement, ast.Assign):
        target = statement.targets[0]
    return target.id if isinstance(target, ast.Name) else None


def class_attribute_docs(cls: type) -> dict[str, str]:
    """Return docstrings of a class's attributes, by name."""
    tree = ast.parse(inspect.getsource(cls))
    assert isinstance(tree.body[0], ast.ClassDef)
    return attribute_docs(tree.body[0].body)


def first_line(owner: object) -> str:
    """Return the first line of a docstring.

    Raises:
        Undocumented: There is none.
    """
    text = inspect.getdoc(owner)
    if not text:
        raise Undocumented(f"{owner!r} has no docstring")
    return text.splitlines()[0]


def python_sources() -> Iterator[tuple[Path, ast.Module]]:
    """Yield the package's modules with their syntax trees."""
    for path in sorted((ROOT / "flashkit").rglob("*.py")):
        yield path.relative_to(ROOT), ast.parse(path.read_text())


def exception_classes() -> list[type[FlashkitError]]:
    """Return every exception class of the package, parents first; in the same order whatever was imported before."""
    _import_modules_with_errors()
    found: list[type[FlashkitError]] = []
    pending = [FlashkitError]
    while pending:
        cls = pending.pop(0)
        if cls.__module__.startswith("flashkit."):
            found.append(cls)
            pending.extend(sorted(cls.__subclasses__(), key=_errors_module_first))
    return found


def _import_modules_with_errors() -> None:
    """Import every module that defines an exception of ours: classes are known when their module is."""
    names, files = {FlashkitError.__name__}, set()
    classes = [
        (path, node.name, {ast.unparse(base).rpartition(".")[2] for base in node.bases})
        for path, tree in python_sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    ]
    while new := [(path, name) for path, name, bases in classes if bases & names and name not in names]:
        files |= {path for path, _ in new}
        names |= {name for _, name in new}
    for path in sorted(files):
        importlib.import_module(".".join(path.with_suffix("").parts[path.parts.index("flashkit") :]))


def _errors_module_first(cls: type[FlashkitError]) -> tuple[bool, str]:
    """Sort key: the tree's own module in the order of its text, then the others by name."""
    is_elsewhere = cls.__module__ != FlashkitError.__module__
    return is_elsewhere, f"{cls.__module__}.{cls.__name__}" if is_elsewhere else ""


def report_rows() -> list[tuple[str, str, str, str]]:
    """Return the codes that are written as literals into reports, with the words of the function that does it."""
    known = {error.code for error in exception_classes()}
    rows: dict[str, tuple[str, str, str, str]] = {}
    for path, tree in python_sources():
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            for call in (node for node in ast.walk(function) if _is_report(node)):
                for name in _literals(call, "code", position=0):
                    if name not in known:
                        rows.setdefault(name, _report_row(name, call, function, path))
    return sorted(rows.values())


def _is_report(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("ErrorReport", "cls")


def _literals(call: ast.AST, name: str, *, position: int | None = None) -> list[str]:
    assert isinstance(call, ast.Call)
    values = [keyword.value for keyword in call.keywords if keyword.arg == name]
    if position is not None and len(call.args) > position:
        values.append(call.args[position])
    branches = [part for value in values for part in _branches(value)]
    return [node.value for node in branches if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def _branches(value: ast.expr) -> list[ast.expr]:
    return [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]


MEANINGS: Mapping[str, str] = {
    "job_cancelled": "An OpenAI request's job was cancelled.",
    "method_not_allowed": "The local platform has the path, but not for this method.",
    "output_too_large": "The platform refused a result or a partial output for its size.",
    "platform_stopping": "The local platform shut down while an OpenAI request waited.",
    "result_refused": "The platform refused a result; the job is FAILED instead of lost.",
    "internal_error": "The local platform itself failed; its log has the traceback.",
}
"""For codes whose function's docstring speaks of something wider."""


def _report_row(
    name: str, call: ast.AST, function: ast.FunctionDef | ast.AsyncFunctionDef, path: Path
) -> tuple[str, str, str, str]:
    types = _literals(call, "type")
    words = MEANINGS.get(name) or (ast.get_docstring(function) or "").partition("\n")[0].removeprefix("Report ")
    if not words:
        raise Undocumented(f"nothing says what the error code {name!r} means ({path})")
    return code(name), code(types[0]) if types else "", capitalise(words), code(path)
