"""A report for people: findings by file, each with what to do; rules as a list, and one rule in full."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from flashkit.checks.project import Environment
from flashkit.checks.rule import Finding, Rule, Severity
from flashkit.checks.running import Report

_LOOKS: Final = {
    Severity.ERROR: ("✗", "bold red"),
    Severity.WARNING: ("!", "yellow"),
    Severity.NOTE: ("·", "cyan"),
}
_WIDEST: Final = 110
"""Longer lines are hard to read; in a pipe nothing is wrapped, so that lines can be searched."""
_PIPE_WIDTH: Final = 100_000


def show(what: RenderableType) -> None:
    """Print it: wrapped and in colours in a terminal; in a pipe each message on one line."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal may not have the marks
    console = Console(highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        console.width = min(console.width, _WIDEST)
        console.print(what)
        return
    console.width = _PIPE_WIDTH
    with console.capture() as captured:
        console.print(what)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def report_text(report: Report, *, is_strict: bool) -> RenderableType:
    """Return the whole report."""
    files = itertools.groupby(report.findings, key=lambda finding: finding.place.file)
    parts = [Group(Text(name, style="bold"), _findings_table(list(findings)), "") for name, findings in files]
    return Group(*parts, summary_text(report, is_strict=is_strict))


def summary_text(report: Report, *, is_strict: bool) -> Text:
    """Return the last line: what was found, and what was looked at."""
    counts = [(severity, report.count(severity)) for severity in Severity]
    words = [_plural(number, severity.value) for severity, number in counts if number]
    ignored = f", {_plural(len(report.ignored), 'finding')} silenced" if report.ignored else ""
    looked = f"{len(report.rules)} rules for {report.environment.value}{ignored}"
    if not words:
        return Text.assemble(("✓", "green"), f" nothing to complain about: {looked}")
    is_bad = report.has_at_least(Severity.WARNING if is_strict else Severity.ERROR)
    mark, style = _LOOKS[Severity.ERROR] if is_bad else ("✓", "green")
    first = min(report.findings, key=lambda finding: finding.severity.rank)
    return Text.assemble(
        (mark, style), f" {', '.join(words)}: {looked}\n",
        (f"flashkit check --explain {first.rule.id} says why", "dim"),
    )  # fmt: skip


def rules_text(rules: Sequence[Rule]) -> RenderableType:
    """Return one line for each rule."""
    table = Table.grid(padding=(0, 2))
    for rule in rules:
        mark, style = _LOOKS[rule.severity]
        table.add_row(Text(rule.id, style="bold"), Text(mark, style=style), rule.name, Text(rule.what))
    return Group(table, "", Text("✗ error  ! warning  · note; flashkit check --explain ID says why", style="dim"))


def rule_text(rule: Rule) -> RenderableType:
    """Return everything about one rule."""
    facts = Table.grid(padding=(0, 2))
    for name, text in (
        ("what", rule.what),
        ("why", rule.why),
        ("fix", rule.fix),
        ("severity", rule.severity.value),
        ("for", environments_of(rule)),
        ("silence", f"# flashkit: ignore[{rule.id}]"),
    ):
        facts.add_row(Text(name, style="dim"), Text(text))
    return Group(Text.assemble((rule.id, "bold"), f"  {rule.name}"), Padding(facts, (0, 0, 0, 2), expand=False))


def environments_of(rule: Rule) -> str:
    """Return in words where a rule holds: `production, staging`."""
    return ", ".join(each.value for each in Environment if each in rule.environments)


def _findings_table(findings: Sequence[Finding]) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right")
    for finding in findings:
        mark, style = _LOOKS[finding.severity]
        told = Text.assemble(finding.message, (f"  {finding.rule.id}", "dim"), "\n", ("→ ", "dim"), finding.fix)
        table.add_row(Text(str(finding.place.line), style="dim"), Text(mark, style=style), told)
    return Padding(table, (0, 0, 0, 2), expand=False)


def _plural(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
