"""`flashkit new`: make a project of a template."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flashkit.errors import InputError

if TYPE_CHECKING:
    from flashkit.templates import Template


@click.command("new")
@click.argument("template", required=False)
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o", "--option", "options", multiple=True, metavar="NAME=VALUE", help="Answer a question of the template's."
)
@click.option("--no-input", is_flag=True, help="Ask nothing: defaults for what --option does not say.")
def command(template: str | None, folder: Path | None, *, options: tuple[str, ...], no_input: bool) -> None:
    """Make a project of TEMPLATE in FOLDER, which becomes the project's name.

    Without arguments the templates are listed, with what each one asks.
    """
    from flashkit.templates import find_template, render_project

    if template is None:
        _show_templates()
        return
    chosen = find_template(template)
    answers = dict(map(_read_option, options))
    if not no_input and sys.stdin.isatty():
        answers = _ask(chosen, answers)
    project = render_project(chosen, folder or Path(chosen.name), answers)
    _show_next_steps(chosen, project)


def _read_option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"--option {text!r} is not NAME=VALUE", hint="for example --option gpu=NVIDIA_L40S")
    return name, value


def _ask(template: Template, answers: dict[str, str]) -> dict[str, str]:
    """Return answers to all questions; those that were given are not asked."""
    asked = {
        question.name: click.prompt(
            question.text,
            default=question.choices[0],
            type=click.Choice(question.choices) if question.is_choice else str,
        )
        for question in template.questions
        if question.name not in answers
    }
    return {**asked, **answers}


def _show_templates() -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from flashkit.templates import list_templates

    table = Table(box=None, padding=(0, 3, 0, 0))
    for heading in ("template", "what it is", "options (the default first)"):
        table.add_column(heading, overflow="fold")
    for template in list_templates().values():
        lines = [f"{question.name}: {', '.join(question.choices)}" for question in template.questions]
        table.add_row(Text(template.name, style="bold"), template.description, Text("\n".join(lines), style="dim"))
    console = Console(highlight=False)
    console.print(table)
    console.print("\nMake a project: flashkit new cpu_tool my_tool", style="dim")


def _show_next_steps(template: Template, project: Path) -> None:
    try:
        shown = project.relative_to(Path.cwd())
    except ValueError:
        shown = project
    click.echo(f"{shown} is a project of the template {template.name}. Next:\n")
    for line in (f"cd {shown}", "pip install -r requirements-dev.txt", "pytest", "flashkit dev"):
        click.echo(f"    {line}")
    click.echo("\nREADME.md says what is where, and how to build and deploy it.")
