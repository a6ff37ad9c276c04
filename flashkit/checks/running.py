"""Rules applied to a project, and comments applied to what they found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flashkit.checks.all_rules import ALL_RULES, BY_ID
from flashkit.checks.ignoring import Ignore, covers, find_ignores
from flashkit.checks.project import Environment, Project
from flashkit.checks.rule import Finding, Rule, Severity
from flashkit.checks.rules.comments import unknown_ignore, unused_ignore


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, in the order of files and lines."""

    environment: Environment
    findings: tuple[Finding, ...]
    ignored: tuple[Finding, ...]
    """Silenced by a comment."""
    rules: tuple[Rule, ...]
    """Those that were looked at."""

    def count(self, severity: Severity) -> int:
        """Return how many findings are of a severity."""
        return sum(finding.severity is severity for finding in self.findings)

    def has_at_least(self, severity: Severity) -> bool:
        """Return whether a finding is that bad, or worse."""
        return any(finding.severity.rank <= severity.rank for finding in self.findings)


def check_projects(projects: Sequence[Project], environment: Environment) -> Report:
    """Return what is wrong with the projects."""
    rules = tuple(rule for rule in ALL_RULES if rule.applies_in(environment))
    found: list[Finding] = []
    ignored: list[Finding] = []
    for project in projects:
        kept, silenced = _check(project, rules)
        found += kept
        ignored += silenced
    return Report(environment, _sorted(found), _sorted(ignored), rules)


def _check(project: Project, rules: Sequence[Rule]) -> tuple[list[Finding], list[Finding]]:
    """Return what is left, and what comments silenced."""
    ignores = find_ignores(project.files)
    used: set[Ignore] = set()
    kept: list[Finding] = []
    silenced: list[Finding] = []
    for finding in (finding for rule in rules for finding in rule.find(project)):
        by = [ignore for ignore in ignores if covers(ignore, finding.rule.id, finding.place)]
        used.update(by)
        (silenced if by else kept).append(finding)
    kept += [unknown_ignore(ignore, BY_ID) for ignore in ignores if ignore.rule_id not in BY_ID]
    looked_at = {rule.id for rule in rules}
    kept += [unused_ignore(ignore) for ignore in ignores if ignore.rule_id in looked_at and ignore not in used]
    return kept, silenced


def _sorted(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    once = dict.fromkeys(findings)
    return tuple(sorted(once, key=lambda each: (each.place.file, each.place.line, each.severity.rank, each.rule.id)))
