"""What a rule is, and what it says when it is broken: plain values, and two decorators that make rules of functions.

A rule looks at a `Project` and yields what is wrong. It reads nothing itself and changes nothing, so the same project
always has the same findings. Its texts are data: they stand in the terminal, in SARIF files and in the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from flashkit.checks.project import Endpoint, Environment, Place, Project


class Severity(StrEnum):
    """How bad it is; the words are those of SARIF."""

    ERROR = "error"
    """It will fail, leak or lose something."""
    WARNING = "warning"
    """It costs money or time in production, or hides a mistake."""
    NOTE = "note"
    """Good to know; nothing has to change."""

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return list(Severity).index(self)


ALL: Final = frozenset(Environment)
SHIPPED: Final = frozenset({Environment.PRODUCTION, Environment.STAGING})
PRODUCTION: Final = frozenset({Environment.PRODUCTION})


@dataclass(frozen=True, slots=True)
class Problem:
    """What a rule found."""

    message: str
    """What is the case, with the values; it stands alone."""
    place: Place | None = None
    """Without one it is the endpoint's, or the app's."""
    fix: str | None = None
    """What to do in this case, where the rule's own words are too general."""
    severity: Severity | None = None
    """Where this case is worse or milder than the rule's others."""
    endpoint: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, the rule that found it, and where it is."""

    rule: Rule
    severity: Severity
    message: str
    fix: str
    place: Place
    endpoint: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. Its id does not change, and is not used for another one later."""

    id: str
    name: str
    severity: Severity
    what: str
    """What is so where the rule is followed, in one sentence."""
    why: str
    fix: str
    """What to do, for every case."""
    environments: frozenset[Environment]
    look: Callable[[Project], Iterator[Problem]]

    def applies_in(self, environment: Environment) -> bool:
        """Return whether the rule is looked at for this environment."""
        return environment in self.environments

    def find(self, project: Project) -> Iterator[Finding]:
        """Yield what breaks the rule, whatever the environment."""
        for problem in self.look(project):
            yield Finding(
                self,
                problem.severity or self.severity,
                problem.message,
                problem.fix or self.fix,
                problem.place or project.place,
                problem.endpoint,
            )


def rule(
    rule_id: str,
    name: str,
    severity: Severity,
    *,
    what: str,
    why: str,
    fix: str,
    environments: frozenset[Environment] = ALL,
) -> Callable[[Callable[[Project], Iterator[Problem]]], Rule]:
    """Make a rule of a function that looks at a whole project."""

    def make(look: Callable[[Project], Iterator[Problem]]) -> Rule:
        return Rule(rule_id, name, severity, what, why, fix, environments, look)

    return make


def endpoint_rule(
    rule_id: str,
    name: str,
    severity: Severity,
    *,
    what: str,
    why: str,
    fix: str,
    environments: frozenset[Environment] = ALL,
) -> Callable[[Callable[[Endpoint, Project], Iterator[Problem]]], Rule]:
    """Make a rule of a function that looks at one endpoint after the other.

    A plain `runpod` handler file is left out: its endpoint has no options of its own.
    """

    def make(check: Callable[[Endpoint, Project], Iterator[Problem]]) -> Rule:
        def look(project: Project) -> Iterator[Problem]:
            for endpoint in project.endpoints:
                for problem in () if endpoint.is_plain_handler else check(endpoint, project):
                    yield replace(problem, place=problem.place or endpoint.place, endpoint=endpoint.name)

        return Rule(rule_id, name, severity, what, why, fix, environments, look)

    return make
