"""What `flashkit dev` writes down of jobs that completed, and what the check makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from flashkit.cli.dependencies import Dependencies, read_dependencies
from flashkit.cli.local_runs import RUNS_FILE, LocalRuns, code_digest, read_local_runs
from flashkit.emulator.events import JobEvent, LogLine, ReloadEvent, RequestEvent
from flashkit.protocol import JobStatus
from flashkit.testing.platform import LocalPlatform
from tests.checks.conftest import write_files


def job(status: JobStatus, job_id: str = "1") -> JobEvent:
    return JobEvent("tool", job_id, status, 1, None, None, None, None, None, 0, 0)


def request(status: int | None) -> RequestEvent:
    return RequestEvent("api", "1", "GET", "/", status, None, 0, None, None, 0, 0, None)


class Watched:
    """A record of runs, and the code that its platform says it runs."""

    def __init__(self, folder: Path) -> None:
        self.code: dict[str, str | None] = {"tool": "one", "api": "one"}
        self.asked = 0
        self.file = folder / "local-runs.json"
        self.runs = LocalRuns(self.file, self.code_of)

    def code_of(self, endpoint: str) -> str | None:
        self.asked += 1
        return self.code[endpoint]

    def notice(self, *events) -> None:
        for event in events:
            self.runs.notice(event)


def test_a_completed_job_is_noted_with_the_code_that_it_began_with(tmp_path: Path):
    watched = Watched(tmp_path)
    watched.notice(job(JobStatus.IN_QUEUE), job(JobStatus.IN_PROGRESS))
    watched.code["tool"] = "two"
    watched.notice(ReloadEvent(("app.py",)), job(JobStatus.COMPLETED))
    assert read_local_runs(watched.file) == {"tool": "one"}
    watched.notice(job(JobStatus.IN_PROGRESS, "2"), job(JobStatus.COMPLETED, "2"))
    assert read_local_runs(watched.file) == {"tool": "two"}
    assert json.loads(watched.file.read_text())["tool"]["at"].endswith("+00:00")


def test_jobs_that_fail_and_requests_that_are_refused_are_not_noted(tmp_path: Path):
    watched = Watched(tmp_path)
    for status in (JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.TIMED_OUT):
        watched.notice(job(JobStatus.IN_PROGRESS), job(status))
    watched.notice(request(404), request(500), request(None), LogLine("tool", "w", None, None, "hello"))
    assert not watched.file.exists()
    watched.notice(request(201))
    assert read_local_runs(watched.file) == {"api": "one"}


def test_code_that_nobody_knows_is_not_noted(tmp_path: Path):
    watched = Watched(tmp_path)
    watched.code["tool"] = None
    watched.notice(job(JobStatus.IN_PROGRESS), job(JobStatus.COMPLETED), job(JobStatus.COMPLETED, "never begun"))
    assert not watched.file.exists()


def test_a_busy_platform_asks_and_writes_once(tmp_path: Path):
    watched = Watched(tmp_path)
    watched.notice(job(JobStatus.IN_PROGRESS), job(JobStatus.COMPLETED))
    watched.file.unlink()
    for number in range(100):
        watched.notice(job(JobStatus.IN_PROGRESS, str(number)), job(JobStatus.COMPLETED, str(number)))
    assert watched.asked == 1
    assert not watched.file.exists()


def test_two_servers_of_one_folder_keep_each_others_notes(tmp_path: Path):
    first, second = Watched(tmp_path), Watched(tmp_path)
    first.notice(job(JobStatus.IN_PROGRESS), job(JobStatus.COMPLETED))
    second.notice(request(200))
    assert read_local_runs(first.file) == {"tool": "one", "api": "one"}


def test_a_folder_that_cannot_be_written_costs_the_note_and_nothing_else(tmp_path: Path):
    watched = Watched(tmp_path / "no" / "where")
    watched.notice(request(200))
    assert read_local_runs(watched.file) == {}
    assert not (tmp_path / "no").exists()


def test_the_folder_of_the_record_is_made_and_kept_out_of_git(tmp_path: Path):
    watched = Watched(tmp_path / ".flashkit")
    watched.notice(request(200))
    assert read_local_runs(watched.file) == {"api": "one"}
    assert (tmp_path / ".flashkit" / ".gitignore").read_text() == "*\n"


APP = """from flashkit import cpu_endpoint


@cpu_endpoint(name="tool")
def tool(text: str) -> str:
    return text
"""
USES_PLATFORM = """def test_the_tool_answers(endpoint):
    assert endpoint("tool").call({"text": "x"}) == "x"
"""


def test_tests_with_a_platform_count_as_local_runs(tmp_path: Path):
    """Any platform of pytest's plugin; one that a program starts itself leaves nothing behind."""
    write_files(tmp_path, {"app.py": APP, "test_app.py": USES_PLATFORM})
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    found = read_dependencies(tmp_path / "app.py", ["tool"], root=tmp_path)["tool"]
    assert read_local_runs(tmp_path / RUNS_FILE) == {"tool": code_digest(found, tmp_path)}
    (tmp_path / RUNS_FILE).unlink()
    with LocalPlatform(tmp_path / "app.py") as platform:
        assert platform.endpoint("tool").call({"text": "x"}) == "x"
    assert read_local_runs(tmp_path / RUNS_FILE) == {}


def test_a_damaged_record_counts_as_none(tmp_path: Path):
    file = tmp_path / "runs.json"
    for text in ("", "[]", "not JSON", '{"tool": 1, "other": {"code": 2}}'):
        file.write_text(text)
        assert read_local_runs(file) == {}


def test_the_digest_is_the_same_in_another_folder_and_changes_with_any_file(tmp_path: Path):
    digests = []
    for name, text in (("one", "x = 1\n"), ("two", "x = 1\n"), ("three", "x = 2\n")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "tools.py").write_text(text)
        (folder / "app.py").write_text("from tools import x\n\n\ndef tool() -> int:\n    return x\n")
        found = read_dependencies(folder / "app.py", ["tool"], root=folder)
        digests.append(code_digest(found["tool"], folder))
    assert digests[0] == digests[1] != digests[2]
    assert code_digest(Dependencies("a", {}), tmp_path) != code_digest(Dependencies("b", {}), tmp_path)
