"""`flashkit logs` and `flashkit replay` against a running `flashkit dev`."""

import json
import re
import shutil
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def dev(folder, start_shared_dev, flashkit):
    """A server on which four jobs have run: two of greet, a failed one, and one of count."""
    (folder / "app.py").write_text(GREETER)
    dev = start_shared_dev(folder)
    for name in ("Ada", "Bo", "nobody"):
        flashkit("run", "greet", json.dumps({"name": name}), folder=folder)
    flashkit("run", "count", '{"n": 2}', folder=folder)
    return dev


GREETER = """
from collections.abc import AsyncIterator

from flashkit import cpu_endpoint, gpu_endpoint


@cpu_endpoint(name="greet", workers=(0, 1), idle_timeout=600)
def greet(name: str, times: int = 1) -> dict[str, str]:
    print("about to greet", name)
    if name == "nobody":
        raise LookupError("there is nobody to greet")
    return {"text": f"hello {name}"}


@gpu_endpoint(name="count", gpu="A100", idle_timeout=600)
async def count(n: int) -> AsyncIterator[str]:
    for index in range(n):
        yield f"{index} "
"""


def job_id(dev, flashkit, folder, *, status="COMPLETED", endpoint="greet"):
    lines = flashkit("logs", "--json", "--endpoint", endpoint, folder=folder).out.splitlines()
    events = [json.loads(line) for line in lines]
    return next(event["job_id"] for event in events if event["type"] == "job" and event["status"] == status)


def test_logs_show_what_happened_as_dev_did(dev, folder, flashkit):
    shown = flashkit("logs", folder=folder).out
    assert len(re.findall(r"^\d\d:\d\d:\d\d ✓ greet +run ", shown, re.MULTILINE)) == 2
    assert "│ greet       about to greet Ada" in shown
    assert "LookupError: there is nobody to greet" in shown
    for line in shown.splitlines():
        assert line in dev.text


def test_logs_of_one_endpoint_and_of_one_job(dev, folder, flashkit):
    assert "greet" not in flashkit("logs", "--endpoint", "count", folder=folder).out
    first = job_id(dev, flashkit, folder)
    shown = flashkit("logs", "--job", first[:6], folder=folder).out
    assert "IN_QUEUE" in shown
    assert "about to greet Ada" in shown
    assert "Bo" not in shown
    newest = flashkit("logs", "--json", "-n", "1", "--endpoint", "count", folder=folder).out
    assert json.loads(newest)["endpoint"] == "count"


def test_followed_logs_go_on_until_the_server_stops(project, start_dev, flashkit, environment):
    dev = start_dev(project)
    script = "from flashkit.cli import main; main(['logs', '-f', '--json', '--endpoint', 'greet'])"
    following = subprocess.Popen(
        [sys.executable, "-c", script], cwd=project, stdout=subprocess.PIPE, text=True, env=environment()
    )
    try:
        flashkit("run", "greet", '{"name": "Cy"}', folder=project)
        for line in following.stdout:
            if json.loads(line).get("text") == "about to greet Cy":
                break
        dev.stop()
        assert following.wait(timeout=30) == 0
    finally:
        following.kill()
        following.stdout.close()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["logs", "--job", "zzz"], 2, "there is no job 'zzz'"),
        (["logs", "-f", "--url", "http://127.0.0.1:1"], 1, "cannot connect to"),
        (["logs", "--url", "ftp://x"], 2, "is not an address"),
        (["logs", "--endpoint", "gret"], 2, "there is no endpoint 'gret'"),
        (["logs", "--endpoint", "gret"], 2, "did you mean 'greet'? known endpoints: count, greet"),
        (["logs", "-f", "--endpoint", "zzz"], 2, "hint: known endpoints: count, greet"),
        (["replay", "zzz"], 2, "there is no job 'zzz'"),
    ],
)
def test_what_cannot_be_shown_is_said(dev, flashkit, arguments, code, message):
    result = flashkit(*arguments, folder=dev.folder)
    assert (result.code, result.out) == (code, "")
    assert message in result.err


@pytest.mark.parametrize("command", ["logs", "replay"])
def test_without_a_server_they_say_how_to_start_one(tmp_path, flashkit, command):
    for variables in ({}, {"RUNPOD_API_KEY": "rpa_x"}):
        result = flashkit(command, folder=tmp_path, **variables)
        assert result.code == 2
        assert "no flashkit dev runs in this folder" in result.err


# ---- replay ------------------------------------------------------------------------------------------------


def test_a_job_is_sent_again_by_the_begin_of_its_id_or_the_newest(dev, folder, flashkit):
    first = job_id(dev, flashkit, folder)
    result = flashkit("replay", first[:8], "--json", folder=folder)
    assert (result.code, result.out) == (0, '{"text":"hello Ada"}\n')
    assert f"job {first} of greet, again" in result.err
    assert flashkit("replay", "--endpoint", "greet", "--json", folder=folder).out == '{"text":"hello Ada"}\n'
    assert re.fullmatch(r"[0-9a-f-]{36}\n", flashkit("replay", "--wait", "0", folder=folder).out)


def test_an_id_that_could_be_several_is_refused(dev, folder, flashkit):
    ids = {json.loads(line).get("job_id") or "" for line in flashkit("logs", "--json", folder=folder).out.splitlines()}
    letters = [job[0] for job in ids if job]
    twice = next((letter for letter in letters if letters.count(letter) > 1), None)
    while twice is None:
        flashkit("run", "greet", '{"name": "Di"}', folder=folder)
        lines = flashkit("logs", "--json", folder=folder).out.splitlines()
        letters = [job[0] for job in {json.loads(line).get("job_id") or "" for line in lines} if job]
        twice = next((letter for letter in letters if letters.count(letter) > 1), None)
    result = flashkit("replay", twice, folder=folder)
    assert result.code == 2
    assert f"jobs begin with '{twice}'" in result.err
    assert "give more of the id" in result.err


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_a_job_as_curl_command_does_the_same(dev, folder, flashkit):
    command = flashkit("replay", job_id(dev, flashkit, folder), "--as", "curl", folder=folder).out
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["output"] == {"text": "hello Ada"}


@pytest.mark.parametrize("status", ["COMPLETED", "FAILED"])
def test_a_job_as_test_passes(dev, flashkit, tmp_path, environment, status):
    job = job_id(dev, flashkit, dev.folder, status=status)
    code = flashkit("replay", job, "--as", "pytest", folder=dev.folder).out
    shutil.copy(dev.folder / "app.py", tmp_path)
    (tmp_path / "test_replayed.py").write_text(code)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "test_replayed.py"], cwd=tmp_path, capture_output=True, text=True,
        timeout=100, check=False, env=environment(),
    )  # fmt: skip
    assert "1 passed" in done.stdout, done.stdout + code
