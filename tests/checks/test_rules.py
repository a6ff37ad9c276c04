"""Every rule is broken by its broken projects and followed by the others; all of them are documented."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from flashkit.checks.all_rules import ALL_RULES, BY_ID
from flashkit.checks.project import Environment
from flashkit.checks.rule import Finding, Severity
from flashkit.checks.running import Report, check_projects
from flashkit.cli.dependencies import read_dependencies
from flashkit.cli.local_runs import RUNS_FILE, code_digest
from tests.checks.cases import CASES, SECRETS, Files
from tests.checks.conftest import describe_all, projects_in, write_files


@dataclass(frozen=True)
class Tried:
    """One project of a case, checked."""

    rule_id: str
    is_broken: bool
    files: Files
    report: Report

    def found(self) -> list[Finding]:
        return [finding for finding in self.report.findings if finding.rule.id == self.rule_id]


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> list[Tried]:
    """Every project of every case, in a folder of its own."""
    root = tmp_path_factory.mktemp("cases")
    projects = [
        (rule_id, is_broken, files)
        for rule_id, case in CASES.items()
        for is_broken, group in ((True, case.broken), (False, case.fine))
        for files in group
    ]
    folders = [write_files(root / f"p{number}", files) for number, (_, _, files) in enumerate(projects)]
    for folder in folders:
        record_local_run(folder)
    answers = describe_all(folders)
    return [
        Tried(rule_id, is_broken, files, check(folder, answers[folder], CASES[rule_id].environment))
        for folder, (rule_id, is_broken, files) in zip(folders, projects, strict=True)
    ]


def record_local_run(folder: Path) -> None:
    """Put the digest of the app's code where a case asks for it, as `flashkit dev` would."""
    file = folder / RUNS_FILE
    if file.exists() and file.read_text() == "THE DIGEST OF THIS APP":
        dependencies = read_dependencies(folder / "app.py", ["tool"], root=folder)["tool"]
        file.write_bytes(orjson.dumps({"tool": {"code": code_digest(dependencies, folder)}}))


def check(folder: Path, answer, environment: str) -> Report:
    return check_projects(projects_in(folder, answer, environment), Environment(environment))


def test_every_rule_has_a_project_that_breaks_it_and_one_that_follows_it():
    assert set(CASES) == set(BY_ID)
    assert all(case.broken and case.fine for case in CASES.values())
    assert len(ALL_RULES) >= 25


@pytest.mark.parametrize("rule_id", CASES)
def test_a_rule_finds_what_breaks_it_and_nothing_else(rule_id: str, tried: list[Tried]):
    mine = [each for each in tried if each.rule_id == rule_id]
    missed = [each.files for each in mine if each.is_broken and not each.found()]
    assert missed == [], f"{rule_id} does not find them"
    wrong = [(each.files, each.found()) for each in mine if not each.is_broken and each.found()]
    assert wrong == [], f"{rule_id} finds what is not there"


def test_no_message_shows_a_secret(tried: list[Tried]):
    texts = [text for each in tried for found in each.report.findings for text in (found.message, found.fix)]
    assert [text for text in texts if any(secret in text or secret[:12] in text for secret in SECRETS)] == []


def test_every_place_is_a_line_of_a_file_that_is_there(tried: list[Tried]):
    for each in tried:
        for finding in each.report.findings:
            assert finding.place.file in each.files, finding
            lines = each.files[finding.place.file].splitlines() or [""]
            assert 1 <= finding.place.line <= len(lines), finding


def test_messages_are_sentences_of_the_house(tried: list[Tried]):
    """What happened with which value, then what to do: no full stop after the first, one after the second."""
    for each in tried:
        for finding in each.report.findings:
            assert not finding.message.endswith("."), finding.message
            assert finding.fix.endswith((".", "...")), finding.fix
            assert "None" not in finding.message, finding.message
            assert "\n" not in finding.message


def test_ids_are_unique_and_rules_have_all_their_words():
    assert len(BY_ID) == len(ALL_RULES)
    assert len({rule.name for rule in ALL_RULES}) == len(ALL_RULES)
    for rule in ALL_RULES:
        assert re.fullmatch(r"FK[1-9]\d\d", rule.id)
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", rule.name)
        assert rule.environments
        for text in (rule.what, rule.why, rule.fix):
            assert text[0].isupper() or text.startswith("vLLM"), rule.id
            assert text.endswith("."), rule.id


def test_production_has_every_rule_and_dev_those_that_hold_on_any_machine():
    by_environment = {place: {rule.id for rule in ALL_RULES if rule.applies_in(place)} for place in Environment}
    assert by_environment[Environment.PRODUCTION] == set(BY_ID)
    assert (
        by_environment[Environment.DEV] < by_environment[Environment.STAGING] < by_environment[Environment.PRODUCTION]
    )


def test_severities_are_in_order():
    assert sorted(Severity, key=lambda severity: severity.rank) == [Severity.ERROR, Severity.WARNING, Severity.NOTE]
