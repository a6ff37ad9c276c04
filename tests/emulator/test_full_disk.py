"""A disk without room, and a process without room for files: said in a sentence, and what runs goes on."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest

from flashkit.errors import ErrorReport
from flashkit.protocol import PlatformDefaults
from flashkit.spec import ScalerType
from tests.cli.conftest import GREETER, Dev


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own with a project on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("a disk may not be mounted here")
    try:
        (folder / "app.py").write_text(GREETER)
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass


@pytest.mark.parametrize(
    ("options", "said"),
    [((), "No space left on device"), (("--redis", "sqlite:///s.db"), "make room on the disk")],
    ids=["own server", "SQLite"],
)
def test_flashkit_dev_on_a_full_disk_says_so(small_disk, options, said):
    fill(small_disk)
    dev = Dev(small_disk, "app.py", *options)
    with dev.process.stdout:
        assert dev.end(seconds=30) in (1, 2), dev.text
    assert said in dev.text
    assert "hint:" in dev.text
    assert "Traceback" not in dev.text
    assert not list((small_disk / ".flashkit").glob("dev.*"))


def test_a_record_that_cannot_be_written_is_said_and_leaves_no_draft(small_disk):
    (small_disk / ".flashkit").mkdir()
    (small_disk / ".flashkit" / "dev.json").mkdir()
    dev = Dev(small_disk, "app.py")
    with dev.process.stdout:
        assert dev.end(seconds=30) == 2
    assert "dev.json cannot be written: Is a directory" in dev.text
    assert [path.name for path in (small_disk / ".flashkit").glob("dev.*")] == ["dev.json"]


def test_jobs_that_cannot_be_exported_are_said_and_workers_still_stop(small_disk):
    dev = Dev(small_disk, "app.py", "--export-on-exit", str(small_disk / "app.py" / "folder"))
    try:
        dev.wait_for("Ctrl-C stops")
        family = dev.family()
    finally:
        dev.stop()
    assert "the jobs cannot be exported to" in dev.text
    assert "Traceback" not in dev.text
    assert not any(process.is_running() for process in family)


def test_a_disk_that_fills_up_ends_the_recording_and_jobs_go_on(small_disk):
    dev = Dev(small_disk, "app.py", "--record", "traffic.jsonl")
    try:
        dev.wait_for("Ctrl-C stops")
        fill(small_disk)
        body = json.dumps({"input": {"name": "x" * 5000}}).encode()
        for _ in range(3):
            request = urllib.request.Request(f"{dev.url}/v2/greet/runsync", body, {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert json.load(answer)["status"] == "COMPLETED"
        assert "the recording in traffic.jsonl ends here" in dev.text
        assert "No space left" in dev.text
    finally:
        dev.stop()
    assert "Traceback" not in dev.text


async def test_a_worker_whose_home_cannot_be_made_fails_the_waiting_job_with_the_reason(
    make_endpoint, start_emulator, http, tmp_path
):
    emulator = await start_emulator(make_endpoint("quiet", "silent"), defaults=PlatformDefaults(failed_starts=1))
    shutil.rmtree(emulator._state_dir, ignore_errors=True)
    emulator._state_dir.write_text("a file where a folder should be")
    answer = await http("POST", f"{emulator.url}/v2/quiet/runsync", json={"input": 1})
    report = ErrorReport.from_job_error(answer.body["error"])
    assert report.code == "worker_start_failed"
    assert "could not be started" in report.details["log_tail"][-1]


@contextlib.contextmanager
def no_files_left():
    """Let this process open no more files, for as long as the block lasts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        with contextlib.suppress(OSError):
            while True:
                stack.enter_context(Path("/dev/null").open("rb"))
        yield


HTTP = {"load_balanced": True, "scaler_type": ScalerType.REQUEST_COUNT, "execution_timeout_ms": 330_000}


@pytest.mark.parametrize("options", [{}, HTTP], ids=["queue", "HTTP"])
async def test_without_files_left_a_worker_does_not_start_and_later_one_does(
    make_endpoint, start_emulator, http, events, *, options, wait_until
):
    defaults = PlatformDefaults(failed_starts=1, respawn_delay=0.05)
    local = make_endpoint("short", "silent", **options)
    emulator = await start_emulator(local, on_event=events, defaults=defaults, shutdown_grace=0.5)
    assert (await http("GET", f"{emulator.url}/v2/short/health")).status == 200  # this connection stays open
    with no_files_left():
        answer = await http(
            "POST", f"{emulator.url}/{'lb/short/x' if options else 'v2/short/runsync'}", json={"input": 1}
        )
    assert "workers do not start" in str(answer.body) if options else "Too many open files" in str(answer.body)
    assert any("Too many open files" in line.text for line in events.lines("short"))
    events.all.clear()
    await emulator.replace([make_endpoint("short", "silent", workers=(1, 1), **options)])
    await wait_until(lambda: [line for line in events.lines("short") if line.text == "up"])
