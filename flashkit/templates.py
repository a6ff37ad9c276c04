"""Project templates: which there are, what they ask, and how a project is made of one.

They are ordinary cookiecutter templates below `worker_templates/` of the repository, and go with the package. What they
ask is in each one's `cookiecutter.json`: a text, or a list of choices of which the first one is the default.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flashkit.catalog import nearest_names
from flashkit.errors import ConfigurationError

_IN_PACKAGE: Final = Path(__file__).parent / "_templates"
_IN_REPOSITORY: Final = Path(__file__).parent.parent / "worker_templates"
_SLUG: Final = re.compile(r"[a-z][a-z0-9_]{1,48}")


@dataclass(frozen=True, slots=True)
class Question:
    """One thing that a template asks."""

    name: str
    text: str
    choices: tuple[str, ...]
    """Valid answers, the default first; one, the default, where any text will do."""

    @property
    def is_choice(self) -> bool:
        """True when only the listed answers are valid."""
        return len(self.choices) > 1


@dataclass(frozen=True, slots=True)
class Template:
    """A project template."""

    name: str
    folder: Path
    description: str
    questions: tuple[Question, ...]
    """All but those about the project's own name."""


def list_templates() -> dict[str, Template]:
    """Return the templates by name."""
    root = _IN_PACKAGE if _IN_PACKAGE.is_dir() else _IN_REPOSITORY
    files = sorted(root.glob("*/cookiecutter.json"))
    return {file.parent.name: _read_template(file) for file in files}


def find_template(name: str) -> Template:
    """Return the template of this name.

    Raises:
        ConfigurationError: There is none; the nearest name is in the message.
    """
    templates = list_templates()
    if name in templates:
        return templates[name]
    near = nearest_names(name, templates, limit=1)
    raise ConfigurationError(
        f"there is no template {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
        hint=f"templates: {', '.join(templates)}",
    )


def render_project(template: Template, folder: Path, answers: Mapping[str, str]) -> Path:
    """Write a project into a folder that does not exist yet, and return it.

    Args:
        template: Made of this template.
        folder: The project's folder; its name is the project's.
        answers: Values for the template's questions; defaults for the others.

    Raises:
        ConfigurationError: The folder is taken or has a name that cannot be used, or an answer is not valid.
    """
    from cookiecutter.exceptions import CookiecutterException
    from cookiecutter.main import cookiecutter

    folder = folder.absolute()
    _require_free(folder)
    context = {"project_name": folder.name.replace("_", " ").title(), "project_slug": folder.name, **answers}
    _require_answers(template, answers)
    with _temporary_files() as leftovers:
        try:
            made = cookiecutter(
                str(template.folder), no_input=True, output_dir=str(folder.parent), extra_context=context,
                accept_hooks=True, default_config={"replay_dir": leftovers},
            )  # fmt: skip
        except CookiecutterException as exc:
            raise ConfigurationError(f"template {template.name!r} could not be rendered: {exc}") from exc
    return Path(made)


@contextlib.contextmanager
def _temporary_files() -> Iterator[str]:
    """Remove what cookiecutter leaves behind: its own copy of a template's hook, and the answers, at home."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="flashkit-new-") as folder:
        tempfile.tempdir = folder
        try:
            yield folder
        finally:
            tempfile.tempdir = before


def _read_template(file: Path) -> Template:
    content: dict[str, Any] = json.loads(file.read_text())
    texts: Mapping[str, Any] = content.get("__prompts__", {})
    questions = tuple(
        Question(name, _text_of(texts.get(name, name)), tuple(value) if isinstance(value, list) else (str(value),))
        for name, value in content.items()
        if not name.startswith("_") and name not in ("project_name", "project_slug")
    )
    return Template(file.parent.name, file.parent, content["_description"], questions)


def _text_of(prompt: Any) -> str:
    """Return the words of a question; the choices of one may have words of their own."""
    return str(prompt["__prompt__"] if isinstance(prompt, dict) else prompt)


def _require_free(folder: Path) -> None:
    if not _SLUG.fullmatch(folder.name):
        raise ConfigurationError(
            f"a project cannot be called {folder.name!r}",
            hint="use 2 to 49 lower-case letters, digits and underscores, a letter first: my_agent",
        )
    if folder.exists():
        raise ConfigurationError(f"{folder.name} is there already", hint="name a folder that does not exist yet")


def _require_answers(template: Template, answers: Mapping[str, str]) -> None:
    questions = {question.name: question for question in template.questions}
    for name, answer in answers.items():
        if name == "project_name":
            continue
        if name not in questions:
            near = nearest_names(name, questions, limit=1)
            raise ConfigurationError(
                f"template {template.name!r} asks no {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
                hint=f"it asks: {', '.join(questions) or 'nothing'}",
            )
        question = questions[name]
        if question.is_choice and answer not in question.choices:
            raise ConfigurationError(
                f"{name}={answer!r} is not one of the choices of template {template.name!r}",
                hint=f"choices: {', '.join(question.choices)}",
            )
