"""The reference says all there is: generated pages are fresh, and nothing exists that it does not name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import click
import pytest
from doc_pages import ROOT

import flashkit
from flashkit.checks.all_rules import ALL_RULES
from flashkit.cli.commands import cli
from flashkit.emulator.server import Emulator
from flashkit.protocol import PlatformDefaults
from flashkit.settings import Settings

REFERENCE = ROOT / "docs" / "reference"
SOURCES = [path.read_text() for path in (ROOT / "flashkit").rglob("*.py")]


def read(name: str) -> str:
    return (REFERENCE / name).read_text()


@pytest.fixture(scope="module")
def reference_pages() -> ModuleType:
    """The script that writes the pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        return importlib.import_module("reference_pages")


def test_generated_pages_are_up_to_date(reference_pages: ModuleType):
    assert reference_pages.stale_pages() == [], "run scripts/docs"


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if page not in navigation] == []


def commands_below(context: click.Context) -> Iterator[click.Context]:
    """Yield the context of every command of a group, those of its groups too."""
    assert isinstance(context.command, click.Group)
    for name in context.command.list_commands(context):
        command = context.command.get_command(context, name)
        assert command
        child = click.Context(command, info_name=name, parent=context)
        yield child
        if isinstance(command, click.Group):
            yield from commands_below(child)


def test_every_command_and_option_is_documented():
    page = read("cli.md")
    context = click.Context(cli, info_name="flashkit", **cli.context_settings)
    for child in commands_below(context):
        assert f"## {child.command_path}\n" in page
        section = page.partition(f"## {child.command_path}\n")[2].partition("\n## ")[0]
        options = [text for parameter in child.command.params for text in parameter.opts if text.startswith("-")]
        assert [text for text in options if text not in section] == []


@pytest.mark.parametrize("prefix", ["FLASHKIT_", "RUNPOD_"])
def test_every_environment_variable_is_documented(prefix: str):
    used = {name for text in SOURCES for name in re.findall(rf'"({prefix}[A-Z_]*[A-Z])"', text)}
    page = read("settings.md")
    assert [name for name in sorted(used) if f"`{name}`" not in page and name != "RUNPOD_API_URL"] == []


def test_every_setting_is_documented():
    page = read("settings.md")
    assert [field.name for field in fields(Settings) if f"| `{field.name}` |" not in page] == []


@pytest.mark.parametrize("kind", ["cpu", "gpu", "embedding", "orchestrator"])
def test_every_endpoint_option_is_documented(reference_pages: ModuleType, kind: str):
    page = read("endpoint-options.md")
    section = page.partition(f"## @{kind}_endpoint")[2].partition("\n## ")[0]
    for name, option in reference_pages.decorator_options(kind).items():
        assert f"| `{name}` | {option.default} | {option.meaning} |" in section


def test_every_error_code_is_documented():
    page = read("errors.md")
    codes = {code for text in SOURCES for code in re.findall(r'\bcode(?:: [^=\n]+)? ?= ?"([a-z_]+)"', text)}
    assert "worker_died" in codes
    assert [code for code in sorted(codes) if f"`{code}`" not in page] == []


def test_every_check_is_documented_with_all_its_words():
    page = read("checks.md")
    for rule in ALL_RULES:
        section = page.partition(f"### {rule.id} {rule.name} ")[2].partition("\n###")[0]
        for text in (rule.what, rule.why, rule.fix, rule.severity.value.capitalize()):
            assert text in section, rule.id


def test_every_platform_default_is_documented():
    page = read("platform-defaults.md")
    assert [field.name for field in fields(PlatformDefaults) if f"| `{field.name}` |" not in page] == []


async def test_every_route_is_documented(tmp_path: Path):
    page = read("http-routes.md")
    async with Emulator([], state_dir=tmp_path) as emulator:
        application = emulator._application()
    routes = [
        f"| `{method} {route.path.replace('{path:path}', 'v1/…')}"
        for route in application._other_routes.routes
        for method in route.methods - {"HEAD"}
    ]
    rests = {"none": "", "job": "/{job_id}", "path": "/v1/…"}
    routes += [
        f"| `{method} /v2/{{endpoint}}/{name}{rests[action.rest]}"
        for name, action in application._routes._job_api.items()
        for method in {*action.methods} - {"HEAD"}
    ]
    assert len(routes) > 30
    assert [route for route in routes if route not in page] == []
    wire = application._wire
    assert [action for action in (*wire._polls, *wire._posts) if f"/{action}/" not in page] == []


def test_every_export_is_in_the_python_reference():
    page = read("python.md")
    names = [name for name in flashkit.__all__ if name != "__version__"]
    assert [name for name in names if not re.search(rf"\.{name}$", page, re.MULTILINE)] == []


def test_every_decision_is_dated_and_listed():
    folder = ROOT / "docs" / "decisions"
    index = (folder / "index.md").read_text()
    notes = sorted(folder.glob("0*.md"))
    assert notes
    for note in notes:
        assert f"({note.name})" in index
        assert re.search(r"^Date: \d{4}-\d{2}-\d{2}$", note.read_text(), re.MULTILINE)


def measured_rows(text: str) -> dict[str, tuple[str, ...]]:
    """Return the rows of tables that have the benchmarks' columns, by their first cell."""
    table = text.partition("| Measured | flashkit | plain SDK |\n")[2].partition("\n\n")[0]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table.splitlines()[1:]]
    return {row[0]: row[1:] for row in rows}


def test_figures_of_the_readme_are_those_of_the_benchmarks_page():
    shown = measured_rows((ROOT / "README.md").read_text())
    assert shown
    recorded = measured_rows((ROOT / "docs" / "benchmarks.md").read_text())
    assert {name: recorded.get(name) for name in shown} == shown
