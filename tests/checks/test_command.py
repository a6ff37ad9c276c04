"""`flashkit check` as people start it: a process in a project's folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from flashkit.checks.all_rules import ALL_RULES, BY_ID
from flashkit.checks.rule import Severity
from tests.checks.cases.building import HF_TOKEN, OPENAI_KEY, SECRETS
from tests.checks.conftest import MODELS_NOWHERE, write_files

FLASHKIT = (sys.executable, "-c", "from flashkit.cli import main; main()")
PROJECTS = Path(__file__).parent / "projects"
KEYS = {"@HF_TOKEN@": HF_TOKEN, "@OPENAI_KEY@": OPENAI_KEY}
HIDDEN = {
    "dotenv": ".env",
    "dotenv.example": ".env.example",
    "dockerignore": ".dockerignore",
    "gitignore": ".gitignore",
}
TOOL = """from flashkit import cpu_endpoint


@cpu_endpoint(name="tool", workers=(1, 3), execution_timeout_ms=30_000, env={"LANGSMITH_TRACING": "true"})
def tool(text: str) -> str:
    return text
"""


@dataclass
class Result:
    code: int
    out: str
    err: str


def flashkit(*arguments: str, folder: Path, seconds: float = 60) -> Result:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
    done = subprocess.run(
        [*FLASHKIT, *arguments], check=False, cwd=folder, capture_output=True, text=True, timeout=seconds,
        env={**kept, **MODELS_NOWHERE, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr)


def make_project(name: str, folder: Path) -> Path:
    """Return a copy of a project with keys put in, and with its hidden files under their own names."""
    for path in (PROJECTS / name).rglob("*"):
        target = folder / path.relative_to(PROJECTS / name).with_name(HIDDEN.get(path.name, path.name))
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text()
            for mark, key in KEYS.items():
                text = text.replace(mark, key)
            target.write_text(text)
    return folder


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    return make_project("planted", tmp_path / "planted")


def test_every_planted_mistake_is_found(planted: Path):
    done = flashkit("check", "--format", "json", folder=planted)
    assert (done.code, done.err) == (1, "")
    report = json.loads(done.out)
    found = {finding["id"] for finding in report["findings"]}
    assert found == set(BY_ID)
    assert len(found) >= 25
    assert report["summary"]["error"] >= sum(rule.severity is Severity.ERROR for rule in ALL_RULES)


def test_mistakes_are_found_where_the_source_says_that_they_are(planted: Path):
    """The planted app names each rule in a comment on the line, or above the declaration that breaks it."""
    report = json.loads(flashkit("check", "--format", "json", folder=planted).out)
    lines = (planted / "app.py").read_text().splitlines()
    mine = [finding for finding in report["findings"] if finding["file"] == "app.py"]
    in_code = ("FK106", "FK203", "FK204", "FK205", "FK301", "FK501", "FK502")
    assert [each for each in mine if each["id"] in in_code and each["id"] not in lines[each["line"] - 1]] == []
    assert {lines[each["line"] - 1] for each in mine if each["endpoint"] == "llm"} == {"llm = gpu_endpoint("}


@pytest.mark.parametrize("form", ["text", "json", "sarif"])
def test_no_form_of_the_report_shows_a_secret(planted: Path, form: str):
    done = flashkit("check", "--format", form, folder=planted)
    assert "characters)" in done.out
    assert [secret for secret in SECRETS if secret[:12] in done.out + done.err] == []


def test_a_clean_project_is_clean_even_strictly(tmp_path: Path):
    folder = make_project("clean", tmp_path)
    done = flashkit("check", "--strict", "--format", "json", folder=folder)
    report = json.loads(done.out)
    problems = [(each["id"], each["message"]) for each in report["findings"] if each["severity"] != "note"]
    assert [each for each in problems if each[0] != "FK703"] == []  # nothing was run here
    assert {each["id"] for each in report["findings"]} <= {"FK108", "FK109", "FK703"}
    assert done.code == 1
    assert flashkit("check", "--strict", "--env", "dev", folder=folder).code == 0


def test_exit_codes_are_for_ci(tmp_path: Path):
    app = tmp_path / "app.py"
    app.write_text(TOOL)
    assert flashkit("check", folder=tmp_path).code == 0
    assert flashkit("check", "--strict", folder=tmp_path).code == 1  # no local run
    assert flashkit("check", "--strict", "--env", "dev", folder=tmp_path).code == 0
    app.write_text(TOOL.replace("execution_timeout_ms=30_000, ", ""))
    assert flashkit("check", "--env", "dev", folder=tmp_path).code == 1
    app.write_text("import nothing_of_this_name")
    done = flashkit("check", folder=tmp_path)
    assert done.code == 3
    assert "No module named 'nothing_of_this_name'" in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nowhere.py",), "'nowhere.py' does not exist"),
        (("empty",), "there is no app in empty"),
        (("--env", "prod"), "'prod' is not one of"),
        (("--format", "xml"), "'xml' is not one of"),
        (("--explain", "FK1033"), "did you mean FK103?"),
        (("--explain", "warm-workers"), "did you mean warm-worker?"),
        (("--explain", "nonsense"), "see flashkit check --list"),
    ],
)
def test_a_wrong_command_line_is_told_what_is_right(tmp_path: Path, arguments: tuple[str, ...], told: str):
    (tmp_path / "empty").mkdir()
    done = flashkit("check", *arguments, folder=tmp_path)
    assert done.code == 2
    assert told in done.err


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("x = 1", "app.py defines no endpoint"),
        ("import os; os._exit(0)", "importing app.py ended its process"),
        ("from flashkit import gpu_endpoint\ngpu_endpoint(name='a', gpu='A1000')", "gpu='A1000' is not known"),
        (f"{TOOL}\n\n{TOOL.replace('def tool', 'def other')}", "two endpoints are named 'tool'"),
        ("def broken(:", "invalid syntax"),
    ],
)
def test_an_app_that_cannot_be_described_is_told_why(tmp_path: Path, source: str, told: str):
    (tmp_path / "app.py").write_text(source)
    done = flashkit("check", folder=tmp_path)
    assert done.code == 3
    assert told in done.err


def test_a_hub_file_that_the_hub_would_not_take_is_a_wrong_setting(tmp_path: Path):
    write_files(tmp_path, {"app.py": TOOL, ".runpod/hub.json": "{"})
    done = flashkit("check", folder=tmp_path)
    assert done.code == 2
    assert "hub.json is not JSON" in done.err


def test_rules_are_listed_and_explained_without_an_app(tmp_path: Path):
    listed = flashkit("check", "--list", folder=tmp_path)
    assert listed.code == 0
    assert [rule.id for rule in ALL_RULES if rule.id not in listed.out] == []
    for name in ("FK103", "fk103", "warm-worker"):
        explained = flashkit("check", "--explain", name, folder=tmp_path)
        assert explained.code == 0
        assert BY_ID["FK103"].why in explained.out


def test_several_apps_and_folders_are_checked_together(tmp_path: Path):
    write_files(tmp_path, {"one/app.py": TOOL, "two/src/handler.py": TOOL.replace('"tool"', '"other"'),
                           "two/Dockerfile": "FROM python\n"})  # fmt: skip
    done = flashkit("check", "one", "two/src/handler.py", folder=tmp_path)
    assert "one/app.py\n" in done.out
    assert "two/src/handler.py\n" in done.out
    assert "two/Dockerfile\n" in done.out


def test_a_plain_runpod_handler_has_its_files_checked(tmp_path: Path):
    handler = (
        "import runpod\n\n\ndef handler(job):\n    return job\n\n\nrunpod.serverless.start({'handler': handler})\n"
    )
    write_files(tmp_path, {"handler.py": f"KEY = '{OPENAI_KEY}'\n{handler}", "Dockerfile": "FROM python\nUSER 1000\n",
                           ".runpod/hub.json": '{"config": {"runsOn": "GPU"}}'})  # fmt: skip
    done = flashkit("check", "--format", "json", folder=tmp_path)
    assert done.code == 1
    assert {finding["id"] for finding in json.loads(done.out)["findings"]} == {"FK101", "FK301", "FK601"}


def test_a_project_above_or_beside_the_current_folder_is_shown_by_its_whole_path(tmp_path: Path):
    write_files(tmp_path, {"project/app.py": TOOL, "elsewhere/x": ""})
    done = flashkit("check", "../project", folder=tmp_path / "elsewhere")
    assert done.out.startswith(f"{(tmp_path / 'project' / 'app.py').as_posix()}\n")


def test_environments_caches_and_large_files_below_the_project_are_not_read(tmp_path: Path):
    key = f"KEY = '{OPENAI_KEY}'\n"
    write_files(tmp_path, {
        "app.py": TOOL, ".venv/a.py": key, "own/pyvenv.cfg": "", "own/lib/a.py": key, "node_modules/a.py": key,
        "__pycache__/a.py": key, "data.json": key + " " * 600_000, "notes.md": key, ".hidden/a.py": key,
    })  # fmt: skip
    (tmp_path / "link.py").symlink_to(tmp_path / "notes.md")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    (tmp_path / "odd.py").write_bytes(b"# \xff\xfe\nx = 1\n")
    done = flashkit("check", "--format", "json", folder=tmp_path)
    assert [finding["id"] for finding in json.loads(done.out)["findings"]] == ["FK703"]


def told_of_local_runs(folder: Path) -> list[str]:
    report = json.loads(flashkit("check", "--format", "json", folder=folder).out)
    return [finding["message"] for finding in report["findings"] if finding["id"] == "FK703"]


def test_a_job_that_failed_under_flashkit_dev_shows_nothing(tmp_path: Path):
    (tmp_path / "app.py").write_text(TOOL)
    assert flashkit("dev", "--once", "--input", '{"text": 1}', folder=tmp_path).code == 6
    assert told_of_local_runs(tmp_path) == ["no job of `tool` has completed on this machine"]


def test_a_job_that_completed_under_flashkit_dev_counts_until_the_code_changes(tmp_path: Path):
    app = tmp_path / "app.py"
    app.write_text(TOOL)
    assert flashkit("dev", "--once", "--input", '{"text": "x"}', folder=tmp_path).code == 0
    assert told_of_local_runs(tmp_path) == []
    app.write_text(TOOL.replace("return text", "return text + text"))
    assert told_of_local_runs(tmp_path) == [
        "the code of `tool` has changed since its last completed job on this machine"
    ]
