"""Projects on disk, described by their own apps and checked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import orjson
import pytest

from flashkit.checks.project import Environment, Project
from flashkit.checks.running import Report, check_projects
from flashkit.cli.check_project import AppAnswer, projects_of
from flashkit.settings import Settings

ReadProjects = Callable[..., list[Project]]
CheckFiles = Callable[..., Report]
DESCRIBE_ALL = Path(__file__).parent / "describe_all.py"
MODELS_NOWHERE = {"FLASHKIT_WEIGHTS_CACHE": "/nonexistent/weights", "HF_HOME": "/nonexistent/hub"}


def write_files(folder: Path, files: Mapping[str, str]) -> Path:
    """Write the files below the folder, and return it."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def describe_all(folders: list[Path]) -> dict[Path, AppAnswer]:
    """Return what the app of each folder says of itself."""
    command = [sys.executable, "-B", str(DESCRIBE_ALL), *map(str, folders)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    answers = [orjson.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    wrong = [(folder, answer) for folder, answer in zip(folders, answers, strict=True) if "endpoints" not in answer]
    assert wrong == []
    return {folder: AppAnswer(folder / "app.py", answer) for folder, answer in zip(folders, answers, strict=True)}


def projects_in(folder: Path, answer: AppAnswer, environment: str = "production") -> list[Project]:
    """Return the projects of a described app."""
    settings = Settings.from_environment(MODELS_NOWHERE, folder=folder)
    return projects_of([answer], Environment(environment), here=folder, settings=settings)


@pytest.fixture
def check_files(tmp_path: Path) -> CheckFiles:
    """Check a project that is given as the texts of its files."""

    def check(files: Mapping[str, str], environment: str = "production") -> Report:
        folder = write_files(tmp_path, files)
        answer = describe_all([folder])[folder]
        return check_projects(projects_in(folder, answer, environment), Environment(environment))

    return check
