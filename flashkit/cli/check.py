"""`flashkit check`: the production checklist, before anything is built or paid for."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from flashkit.checks.running import Report

FORMATS = ("text", "json", "sarif")
ENVIRONMENTS = ("production", "staging", "dev")
EXIT_FINDINGS = 1


@click.command("check")
@click.argument("apps", nargs=-1, metavar="[APP]...", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--env", "environment", type=click.Choice(ENVIRONMENTS), default="production", show_default=True,
    help="Where the app is going; production has the most rules.",
)  # fmt: skip
@click.option(
    "--format", "output_format", type=click.Choice(FORMATS), default="text", show_default=True,
    help="json and sarif are for programs.",
)  # fmt: skip
@click.option("--strict", "is_strict", is_flag=True, help="Exit 1 for warnings too.")
@click.option("--list", "is_list", is_flag=True, help="List the rules and stop.")
@click.option("--explain", "explained", metavar="ID", help="Say what a rule is for, and stop.")
def command(apps: tuple[Path, ...], environment: str, output_format: str, *, is_strict: bool, **asked: Any) -> int:
    """Look for mistakes that cost money, time or secrets in production.

    APP is a file that defines endpoints, or a project's folder; the current one without APP. The app describes itself
    in a process of its own; its source, Dockerfile, .env files, requirements and .runpod files are read. Nothing is
    changed and nothing is sent anywhere.

    A comment silences a rule in its line or the one above: # flashkit: ignore[FK103]

    Exit codes: 0 no errors; 1 errors, with --strict warnings too; 2 the command line or a setting is wrong; 3 an app
    does not import.
    """
    if asked["explained"] is not None:
        _explain(asked["explained"])
        return 0
    if asked["is_list"]:
        _list_rules()
        return 0
    report = _check(apps, environment)
    _write(report, output_format, is_strict=is_strict)
    return _exit_code(report, is_strict=is_strict)


def _check(apps: tuple[Path, ...], environment: str) -> Report:
    from flashkit.checks.project import Environment
    from flashkit.checks.running import check_projects
    from flashkit.cli.check_project import read_projects
    from flashkit.settings import Settings

    going_to = Environment(environment)
    files = list(dict.fromkeys(_locate(app).resolve() for app in apps or [Path.cwd()]))
    projects = read_projects(files, going_to, here=Path.cwd().resolve(), settings=Settings.from_environment())
    return check_projects(projects, going_to)


def _locate(path: Path) -> Path:
    from flashkit.cli.projects import USUAL_NAMES, find_app

    found = find_app(path) if path.is_dir() else path
    if found is None:
        raise click.UsageError(
            f"there is no app in {path}: neither {', '.join(USUAL_NAMES)} nor one of them below src; "
            "name your app's file: flashkit check APP.py"
        )
    return found


def _write(report: Report, output_format: str, *, is_strict: bool) -> None:
    if output_format == "text":
        from flashkit.cli.check_text import report_text, show

        show(report_text(report, is_strict=is_strict))
        return
    import orjson

    from flashkit import __version__
    from flashkit.checks.sarif import to_json, to_sarif

    data = to_json(report) if output_format == "json" else to_sarif(report, version=__version__)
    sys.stdout.write(orjson.dumps(data, option=orjson.OPT_INDENT_2).decode() + "\n")


def _exit_code(report: Report, *, is_strict: bool) -> int:
    from flashkit.checks.rule import Severity

    return EXIT_FINDINGS if report.has_at_least(Severity.WARNING if is_strict else Severity.ERROR) else 0


def _list_rules() -> None:
    from flashkit.checks.all_rules import ALL_RULES
    from flashkit.cli.check_text import rules_text, show

    show(rules_text(ALL_RULES))


def _explain(rule_id: str) -> None:
    from flashkit.checks.all_rules import ALL_RULES
    from flashkit.cli.check_text import rule_text, show

    known = {name: rule for rule in ALL_RULES for name in (rule.id, rule.name)}
    rule = known.get(rule_id.upper()) or known.get(rule_id)
    if rule is None:
        near = get_close_matches(rule_id, known, n=1)
        raise click.UsageError(
            f"there is no rule {rule_id!r}" + (f"; did you mean {near[0]}?" if near else "; see flashkit check --list")
        )
    show(rule_text(rule))
