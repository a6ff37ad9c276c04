"""Every template with every choice: rendered, described, checked, and its own tests run."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashkit.errors import ConfigurationError
from flashkit.templates import Template, find_template, list_templates, render_project

ROOT = Path(__file__).parents[2]
MODELS = ROOT / ".flashkit" / "models"
TEMPLATES = list_templates()
NOT_RUN_YET = "FK703"
"""No job of it has completed under `flashkit dev`: true of a project that has just been rendered."""
FILES = (
    "app.py", "README.md", "requirements.txt", "requirements-dev.txt", "pyproject.toml", "Dockerfile", ".dockerignore",
    ".env.example", ".gitignore", ".python-version", ".runpod/hub.json", ".runpod/tests.json",
    ".github/workflows/test.yml",
)  # fmt: skip


def variants() -> Iterator[tuple[str, dict[str, str]]]:
    """Return every template with its defaults, and with every other choice, one at a time."""
    for name, template in TEMPLATES.items():
        yield name, {}
        for question in template.questions:
            yield from ((name, {question.name: choice}) for choice in question.choices[1:])


def label(variant: tuple[str, dict[str, str]]) -> str:
    """Return a variant's name."""
    return "-".join([variant[0], *variant[1].values()])


def environ() -> dict[str, str]:
    """Return the environment of a newcomer, with models where tests may look for them."""
    kept = {name: value for name, value in os.environ.items() if name != "CI"}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1", "FLASHKIT_WEIGHTS_DIR": str(MODELS)}


def run(*command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a project."""
    env = {**environ(), **variables}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def findings(project: Path) -> list[str]:
    """Return what `flashkit check` has against a project, notes left out."""
    result = run(sys.executable, "-m", "flashkit", "check", "--env", "production", "--format", "json", folder=project)
    report = json.loads(result.stdout)
    return [
        f"{finding['id']} {finding['message']}"
        for finding in report["findings"]
        if finding["severity"] != "note" and finding["id"] != NOT_RUN_YET
    ]


@pytest.mark.parametrize("variant", list(variants()), ids=label)
def test_a_project_is_whole_and_has_nothing_against_it(variant: tuple[str, dict[str, str]], tmp_path: Path):
    name, answers = variant
    project = render_project(TEMPLATES[name], tmp_path / "my_project", answers)
    missing = [file for file in FILES if not (project / file).is_file()]
    assert missing == []
    for file in project.rglob("*"):
        if file.is_file() and file.suffix in (".py", ".json", ".toml", ".yml", ".md", "") and ".git" not in file.suffix:
            text = file.read_text()
            assert "cookiecutter." not in text, file
            if file.suffix == ".py":
                ast.parse(text)
            if file.suffix == ".json":
                json.loads(text)
    assert findings(project) == []


TESTED = [
    each for each in variants() if (not each[1] or "weights" in each[1]) and each[0] != "research_agent"
]  # that one has a test file of its own


@pytest.mark.parametrize("variant", TESTED, ids=label)
@pytest.mark.timeout(300)
def test_a_project_passes_its_own_tests(variant: tuple[str, dict[str, str]], tmp_path: Path):
    name, answers = variant
    project = render_project(TEMPLATES[name], tmp_path / "my_project", answers)
    result = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder=project)
    assert result.returncode == 0, result.stdout[-3000:]


def test_what_templates_share_is_the_same_in_all_of_them():
    spec = importlib.util.spec_from_file_location("share_templates", ROOT / "scripts" / "share_templates.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.stale_copies() == [], "run scripts/share_templates.py"


@pytest.mark.parametrize("template", list(TEMPLATES.values()), ids=lambda template: template.name)
def test_a_template_says_what_it_is_and_what_it_asks(template: Template):
    assert template.description.endswith(".")
    assert all(question.text and question.text != question.name for question in template.questions)


def test_an_unknown_template_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigurationError, match="did you mean 'cpu_tool'"):
        find_template("cpu_tol")


@pytest.mark.parametrize(
    ("folder", "answers", "words"),
    [
        ("9lives", {}, "cannot be called '9lives'"),
        ("My-Tool", {}, "cannot be called 'My-Tool'"),
        ("taken", {}, "taken is there already"),
        ("tool", {"cpuu": "cpu5c-2-4"}, "did you mean 'cpu'"),
        ("tool", {"colour": "red"}, "asks no 'colour'"),
        ("tool", {"cpu": "cpu99"}, "is not one of the choices"),
    ],
)
def test_what_cannot_be_made_is_refused_and_nothing_is_written(
    tmp_path: Path, folder: str, answers: dict[str, str], words: str
):
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConfigurationError, match=words):
        render_project(TEMPLATES["cpu_tool"], tmp_path / folder, answers)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_the_command_lists_templates_and_makes_a_project(tmp_path: Path):
    listed = run(sys.executable, "-m", "flashkit", "new", folder=tmp_path)
    assert all(name in listed.stdout for name in TEMPLATES)
    made = run(sys.executable, "-m", "flashkit", "new", "cpu_tool", "my_tool", "-o", "python=3.12", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "cd my_tool" in made.stdout
    assert (tmp_path / "my_tool" / ".python-version").read_text() == "3.12\n"
    wrong = run(sys.executable, "-m", "flashkit", "new", "cpu_tool", "other", "-o", "python", folder=tmp_path)
    assert (wrong.returncode, "is not NAME=VALUE" in wrong.stderr) == (2, True)


def test_nothing_is_left_outside_the_project(tmp_path: Path):
    (outside := tmp_path / "outside").mkdir()
    made = run(
        sys.executable, "-m", "flashkit", "new", "cpu_tool", "my_tool", "--no-input",
        folder=tmp_path, HOME=str(outside), TMPDIR=str(outside),
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert list(outside.iterdir()) == []
