"""A report for programs: JSON of our own, and SARIF 2.1.0 as code hosts and editors read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

from flashkit.checks.rule import Finding, Rule, Severity
from flashkit.checks.running import Report

SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"
VERSION: Final = "2.1.0"


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as plain JSON values."""
    return {
        "environment": report.environment.value,
        "findings": [_json_of(finding) for finding in report.findings],
        "ignored": [_json_of(finding) for finding in report.ignored],
        "summary": {severity.value: report.count(severity) for severity in Severity},
        "rules": len(report.rules),
    }


def to_sarif(report: Report, *, version: str) -> dict[str, Any]:
    """Return the report as a SARIF log with one run; what comments silenced is in it as suppressed."""
    rules = list(dict.fromkeys([*report.rules, *(each.rule for each in report.findings)]))
    return {
        "$schema": SCHEMA,
        "version": VERSION,
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "flashkit check",
                        "semanticVersion": version,
                        "rules": [_sarif_rule(each) for each in rules],
                    }
                },
                "invocations": [{"executionSuccessful": True}],
                "columnKind": "unicodeCodePoints",
                "results": list(_results(report, rules)),
            }
        ],
    }


def _json_of(finding: Finding) -> dict[str, Any]:
    return {
        "id": finding.rule.id,
        "name": finding.rule.name,
        "severity": finding.severity.value,
        "message": finding.message,
        "fix": finding.fix,
        "file": finding.place.file,
        "line": finding.place.line,
        "endpoint": finding.endpoint,
    }


def _sarif_rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "name": rule.name,
        "shortDescription": {"text": rule.what},
        "fullDescription": {"text": rule.why},
        "help": {"text": f"{rule.why}\n\n{rule.fix}"},
        "defaultConfiguration": {"level": rule.severity.value},
    }


def _results(report: Report, rules: list[Rule]) -> Iterator[dict[str, Any]]:
    numbers = {rule.id: index for index, rule in enumerate(rules)}
    for finding in report.findings:
        yield _result(finding, numbers)
    for finding in report.ignored:
        yield _result(finding, numbers) | {"suppressions": [{"kind": "inSource"}]}


def _result(finding: Finding, numbers: dict[str, int]) -> dict[str, Any]:
    place = finding.place
    region = {"startLine": place.line}
    if place.last_line > place.line:
        region["endLine"] = place.last_line
    location: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": _artifact(place.file), "region": region},
    }
    if finding.endpoint:
        location["logicalLocations"] = [{"name": finding.endpoint, "kind": "resource"}]
    return {
        "ruleId": finding.rule.id,
        "ruleIndex": numbers[finding.rule.id],
        "level": finding.severity.value,
        "message": {"text": f"{finding.message}. {finding.fix}"},
        "locations": [location],
    }


def _artifact(file: str) -> dict[str, Any]:
    """Return a file relative to the root of the source, or by its whole path where it is outside."""
    if file.startswith("/"):
        return {"uri": f"file://{quote(file)}"}
    return {"uri": quote(file), "uriBaseId": "%SRCROOT%"}
