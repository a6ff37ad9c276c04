"""Comments that silence one rule in one place."""

from __future__ import annotations

import pytest

from flashkit.checks.ignoring import Ignore, covers, find_ignores
from flashkit.checks.project import Place
from tests.checks.cases.building import agent, app, cpu, gpu, llm
from tests.checks.conftest import CheckFiles


def found_in(report, rule_id: str) -> list[int]:
    return [finding.place.line for finding in report.findings if finding.rule.id == rule_id]


@pytest.mark.parametrize(
    ("text", "covered"),
    [
        ("x = 1  # flashkit: ignore[FK101]", [("FK101", 1)]),
        ("# flashkit: ignore[FK101]\nx = 1", [("FK101", 2)]),
        ("# flashkit: ignore[FK101] because it is so\n# really\n\nx = 1", [("FK101", 3)]),
        ("#flashkit:ignore[ FK101 ,FK102 ]\nx = 1", [("FK101", 2), ("FK102", 2)]),
        ("# flashkit: ignore[FK101, FK101]\nx = 1", [("FK101", 2)]),
        ("# flashkit: ignore\nx = 1", [("", 2)]),
        ('x = "# flashkit: ignore[FK101]"', []),
        ("# flashkit: something else[FK101]", []),
        ("def broken(:  # flashkit: ignore[FK101]", [("FK101", 1)]),
        ("x = '''# flashkit: ignore[FK101]", []),
    ],
)
def test_comments_are_read_with_the_line_that_they_are_about(text: str, covered: list[tuple[str, int]]):
    assert [(each.rule_id, each.covers) for each in find_ignores({"a.py": text})] == covered


def test_files_with_other_comments_are_read_as_text():
    files = {"Dockerfile": "# flashkit: ignore[FK601]\nFROM a\n", "requirements.txt": "a  # flashkit: ignore[FK604]\n",
             "data.json": '{"a": "# flashkit: ignore[FK601]"}', ".env": "# flashkit: ignore[FK306]\nA=1\n"}  # fmt: skip
    assert {(each.place.file, each.rule_id, each.covers) for each in find_ignores(files)} == {
        ("Dockerfile", "FK601", 2), ("requirements.txt", "FK604", 1), (".env", "FK306", 2),
    }  # fmt: skip


def test_a_comment_covers_a_statement_of_several_lines():
    ignore = Ignore("FK101", Place("a.py", 5), 5)
    assert covers(ignore, "FK101", Place("a.py", 3, 6))
    assert not covers(ignore, "FK102", Place("a.py", 3, 6))
    assert not covers(ignore, "FK101", Place("b.py", 3, 6))
    assert not covers(ignore, "FK101", Place("a.py", 6, 9))


def test_a_comment_on_any_line_of_the_decorator_silences_its_rule_and_no_other(check_files: CheckFiles):
    source = gpu(flashboot=False).replace("flashboot=False", "flashboot=False,  # flashkit: ignore[FK107]\n   ")
    report = check_files(app(source))
    assert found_in(report, "FK107") == []
    assert found_in(report, "FK103") != []
    assert [finding.rule.id for finding in report.ignored] == ["FK107"]
    assert found_in(report, "FK902") == []


def test_one_comment_silences_one_endpoint_and_not_its_neighbour(check_files: CheckFiles):
    report = check_files(app("# flashkit: ignore[FK107]", gpu("a", flashboot=False), gpu("b", flashboot=False)))
    assert len(found_in(report, "FK107")) == 2  # an empty line is between the comment and the decorator
    joined = "# flashkit: ignore[FK107]\n" + gpu("a", flashboot=False)
    report = check_files(app(joined, gpu("b", flashboot=False)))
    assert len(found_in(report, "FK107")) == 1


def test_a_comment_at_a_call_is_about_the_call(check_files: CheckFiles):
    body = (
        "first = await session.call(tool, question)  # flashkit: ignore[FK203]\nreturn await session.call(tool, first)"
    )
    assert len(found_in(check_files(app(cpu(), agent(body))), "FK203")) == 1


def test_a_comment_for_a_rule_of_production_is_no_mistake_elsewhere(check_files: CheckFiles):
    files = app("# flashkit: ignore[FK104]\n" + llm(workers=(1, 3)))
    for environment in ("production", "staging", "dev"):
        assert found_in(check_files(files, environment), "FK902") == []


def test_what_comments_get_wrong_is_told_with_the_nearest_id(check_files: CheckFiles):
    report = check_files(app("# flashkit: ignore[FK71]\n" + cpu() + "\n# flashkit: ignore"))
    messages = [finding.message for finding in report.findings if finding.rule.id == "FK901"]
    assert messages == [
        "the comment names 'FK71', which is no rule; did you mean FK701?",
        "the comment names no rule, so it silences nothing",
    ]
