"""Reports for people and programs."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import orjson
import pytest
from rich.console import Console

from flashkit.checks.all_rules import ALL_RULES, BY_ID
from flashkit.checks.project import Environment, Place
from flashkit.checks.rule import Finding, Severity
from flashkit.checks.running import Report
from flashkit.checks.sarif import to_json, to_sarif
from flashkit.cli.check_text import report_text, rule_text, rules_text

# The parts of SARIF 2.1.0 (OASIS, section 3) that a log of ours has, with what the standard demands of them.
TEXT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}}
LEVEL = {"enum": ["none", "note", "warning", "error"]}
LINE = {"type": "integer", "minimum": 1}
SARIF: dict[str, Any] = {
    "type": "object",
    "required": ["version", "runs"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"const": "2.1.0"},
        "runs": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/run"}},
    },
    "$defs": {
        "run": {
            "type": "object",
            "required": ["tool"],
            "additionalProperties": False,
            "properties": {
                "tool": {
                    "type": "object",
                    "required": ["driver"],
                    "properties": {"driver": {"$ref": "#/$defs/driver"}},
                },
                "invocations": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["executionSuccessful"],
                        "properties": {"executionSuccessful": {"type": "boolean"}},
                    },
                },
                "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                "results": {"type": "array", "items": {"$ref": "#/$defs/result"}},
            },
        },
        "driver": {
            "type": "object",
            "required": ["name"],
            "additionalProperties": False,
            "properties": {
                "name": {"type": "string"},
                "semanticVersion": {"type": "string"},
                "rules": {"type": "array", "uniqueItems": True, "items": {"$ref": "#/$defs/rule"}},
            },
        },
        "rule": {
            "type": "object",
            "required": ["id"],
            "additionalProperties": False,
            "properties": {
                "id": {"type": "string"},
                "name": {"type": "string"},
                "shortDescription": TEXT,
                "fullDescription": TEXT,
                "help": TEXT,
                "defaultConfiguration": {"type": "object", "properties": {"level": LEVEL}},
            },
        },
        "result": {
            "type": "object",
            "required": ["message"],
            "additionalProperties": False,
            "properties": {
                "ruleId": {"type": "string"},
                "ruleIndex": {"type": "integer", "minimum": 0},
                "level": LEVEL,
                "message": TEXT,
                "locations": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/location"}},
                "suppressions": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["kind"],
                        "properties": {"kind": {"enum": ["inSource", "external"]}},
                    },
                },
            },
        },
        "location": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "physicalLocation": {
                    "type": "object",
                    "required": ["artifactLocation"],
                    "properties": {
                        "artifactLocation": {
                            "type": "object",
                            "required": ["uri"],
                            "properties": {
                                "uri": {"type": "string", "pattern": r"^[A-Za-z0-9._~:/?#@!$&'()*+,;=%\-\[\]]+$"},
                                "uriBaseId": {"type": "string"},
                            },
                        },
                        "region": {
                            "type": "object",
                            "required": ["startLine"],
                            "additionalProperties": False,
                            "properties": {"startLine": LINE, "endLine": LINE},
                        },
                    },
                },
                "logicalLocations": {"type": "array", "items": {"type": "object", "required": ["name"]}},
            },
        },
    },
}


def finding(rule_id: str, file: str, line: int, last_line: int = 0, severity: Severity | None = None) -> Finding:
    rule = BY_ID[rule_id]
    return Finding(rule, severity or rule.severity, f"something with {rule_id}", rule.fix, Place(file, line, last_line),
                   "agent" if rule_id == "FK701" else None)  # fmt: skip


@pytest.fixture
def report() -> Report:
    return Report(
        Environment.PRODUCTION,
        findings=(
            finding("FK601", "Dockerfile", 1),
            finding("FK701", "app.py", 3, 9),
            finding("FK104", "app.py", 3),
            finding("FK702", "a folder/größer.py", 2),
        ),
        ignored=(finding("FK103", "app.py", 20),),
        rules=ALL_RULES,
    )


def test_a_sarif_log_is_what_the_standard_demands(report: Report):
    log = json.loads(orjson.dumps(to_sarif(report, version="0.1.0")))
    jsonschema.Draft202012Validator(SARIF, format_checker=jsonschema.FormatChecker()).validate(log)
    [run] = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rules[result["ruleIndex"]]["id"] for result in run["results"]] == [
        "FK601", "FK701", "FK104", "FK702", "FK103",
    ]  # fmt: skip
    assert all(rules[result["ruleIndex"]]["id"] == result["ruleId"] for result in run["results"])
    assert [result["level"] for result in run["results"]] == ["warning", "error", "warning", "note", "warning"]
    assert [bool(result.get("suppressions")) for result in run["results"]] == [False] * 4 + [True]
    assert run["results"][1]["locations"][0]["physicalLocation"]["region"] == {"startLine": 3, "endLine": 9}
    uris = [result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in run["results"]]
    assert uris[3] == "a%20folder/gr%C3%B6%C3%9Fer.py"


def test_a_file_outside_of_the_folder_has_its_whole_address(report: Report):
    elsewhere = Report(report.environment, (finding("FK601", "/tmp/x y/Dockerfile", 1),), (), ALL_RULES)
    [result] = to_sarif(elsewhere, version="0.1.0")["runs"][0]["results"]
    location = result["locations"][0]["physicalLocation"]["artifactLocation"]
    assert location == {"uri": "file:///tmp/x%20y/Dockerfile"}


def test_a_rule_of_another_environment_that_was_broken_is_in_the_log_too(report: Report):
    few = Report(report.environment, report.findings, (), tuple(rule for rule in ALL_RULES if rule.id != "FK601"))
    driver = to_sarif(few, version="0.1.0")["runs"][0]["tool"]["driver"]
    assert "FK601" in [rule["id"] for rule in driver["rules"]]


def test_the_json_has_every_finding_and_the_counts(report: Report):
    data = json.loads(orjson.dumps(to_json(report)))
    assert data["summary"] == {"error": 1, "warning": 2, "note": 1}
    assert data["environment"] == "production"
    assert data["rules"] == len(ALL_RULES)
    assert [each["id"] for each in data["ignored"]] == ["FK103"]
    assert data["findings"][1] == {
        "id": "FK701", "name": "state-is-shared", "severity": "error", "message": "something with FK701",
        "fix": BY_ID["FK701"].fix, "file": "app.py", "line": 3, "endpoint": "agent",
    }  # fmt: skip


def shown(what: Any, width: int = 80) -> str:
    console = Console(width=width, highlight=False, markup=False, emoji=False, color_system=None)
    with console.capture() as captured:
        console.print(what)
    return captured.get()


def test_people_see_findings_by_file_and_one_line_about_all_of_them(report: Report):
    text = shown(report_text(report, is_strict=False), width=200)
    assert [line for line in text.splitlines() if re.fullmatch(r"(\S.*)?(py|Dockerfile)", line)] == [
        "Dockerfile", "app.py", "a folder/größer.py",
    ]  # fmt: skip
    assert "3  ✗  something with FK701  FK701" in text
    assert f"→ {BY_ID['FK701'].fix}" in text
    assert "✗ 1 error, 2 warnings, 1 note: 52 rules for production, 1 finding silenced" in text
    assert "flashkit check --explain FK701 says why" in text


def test_a_narrow_terminal_wraps_below_the_message(report: Report):
    lines = shown(report_text(report, is_strict=False), width=60).splitlines()
    assert max(map(len, lines)) <= 60
    body = lines[lines.index("app.py") + 1 : lines.index("a folder/größer.py")]
    assert all(re.match(r"\s+(\d+  .  |      )\S|$", line) for line in body), body


def test_warnings_alone_are_fine_unless_strict(report: Report):
    mild = Report(report.environment, (finding("FK601", "Dockerfile", 1),), (), ALL_RULES)
    assert shown(report_text(mild, is_strict=False)).splitlines()[-2].startswith("✓ 1 warning:")
    assert shown(report_text(mild, is_strict=True)).splitlines()[-2].startswith("✗ 1 warning:")
    nothing = Report(report.environment, (), (), ALL_RULES)
    assert shown(report_text(nothing, is_strict=True)) == "✓ nothing to complain about: 52 rules for production\n"


def test_the_list_has_every_rule_and_each_can_be_explained():
    listed = shown(rules_text(ALL_RULES), width=200)
    assert [rule.id for rule in ALL_RULES if rule.id not in listed or rule.what not in listed] == []
    for rule in ALL_RULES:
        text = " ".join(shown(rule_text(rule), width=1000).split())
        for part in (rule.id, rule.name, rule.what, rule.why, rule.fix, f"# flashkit: ignore[{rule.id}]"):
            assert part in text, rule.id
        assert rule.severity.value in text
    assert "for production, staging, dev silence" in " ".join(shown(rule_text(BY_ID["FK201"])).split())
    assert "for production silence" in " ".join(shown(rule_text(BY_ID["FK104"])).split())
