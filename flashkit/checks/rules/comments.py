"""FK9xx: comments that silence rules, and do not do what they say. These two cannot be silenced.

`running` finds both, as only it knows all rules and what each comment silenced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches

from flashkit.checks.ignoring import Ignore
from flashkit.checks.project import Project
from flashkit.checks.rule import Finding, Problem, Rule, Severity, rule


def _nothing(project: Project) -> Iterator[Problem]:
    del project
    yield from ()


ignored_rule_exists = rule(
    "FK901",
    "ignored-rule-exists",
    Severity.WARNING,
    what="A comment that silences a rule names one that exists.",
    why="A mistyped id silences nothing, and whoever reads the comment believes that it does.",
    fix="Write # flashkit: ignore[FK103] with ids of `flashkit check --list`.",
)(_nothing)

ignore_needed = rule(
    "FK902",
    "ignore-needed",
    Severity.WARNING,
    what="A comment that silences a rule has something to silence.",
    why="What it was written for is mended. Left in place, it hides the next mistake of the same kind.",
    fix="Delete the comment.",
)(_nothing)


def unknown_ignore(ignore: Ignore, known: Iterable[str]) -> Finding:
    """Return the finding about a comment that names a rule which is none, or names nothing."""
    near = get_close_matches(ignore.rule_id, list(known), n=1) if ignore.rule_id else []
    nearest = f"; did you mean {near[0]}?" if near else ""
    said = f"{ignore.rule_id!r}, which is no rule" if ignore.rule_id else "no rule, so it silences nothing"
    return _finding(ignored_rule_exists, f"the comment names {said}{nearest}", ignore)


def unused_ignore(ignore: Ignore) -> Finding:
    """Return the finding about a comment that silenced nothing."""
    return _finding(ignore_needed, f"nothing here breaks {ignore.rule_id}, so the comment silences nothing", ignore)


def _finding(broken: Rule, message: str, ignore: Ignore) -> Finding:
    return Finding(broken, broken.severity, message, broken.fix, ignore.place)
