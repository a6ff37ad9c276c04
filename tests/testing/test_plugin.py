"""The pytest fixtures, as a project of a user's has them: pytest in a process of its own."""

from __future__ import annotations

import os

import pytest

from flashkit.errors import ConfigurationError
from flashkit.testing.platform import find_apps

APP = """
import asyncio, os
from flashkit import cpu_endpoint

@cpu_endpoint(cpu="cpu3c-2-4", workers=(0, 1), idle_timeout=60, concurrency=4)
async def shout(text: str, seconds: float = 0) -> str:
    print(f"shouting {text}")
    await asyncio.sleep(seconds)
    return text.upper()

@cpu_endpoint(cpu="cpu3c-2-4")
async def letters(text: str):
    for letter in text:
        yield letter
"""
TESTS = """
import pytest
from flashkit.errors import JobTimedOut
from flashkit.protocol import JobStatus
from app import shout

def test_a_call(endpoint):
    assert endpoint("shout").call({"text": "a"}) == "A"
    assert "shouting a" in endpoint("shout").log

def test_a_stream(endpoint):
    assert list(endpoint("letters").stream({"text": "abc"})) == ["a", "b", "c"]

async def remote():
    return await shout.remote(text="b")

def test_remote_reaches_the_platform(platform):
    import asyncio
    assert asyncio.run(remote()) == "B"

def test_time_is_moved_on(platform, endpoint, fake_clock):
    assert endpoint("shout").call({"text": "a"}) == "A"
    assert endpoint("shout").workers
    fake_clock.advance(3600)
    assert not endpoint("shout").workers

def test_a_job_times_out_at_once(endpoint, fake_clock):
    job = endpoint("shout").run({"text": "a", "seconds": 30})
    job.wait_until_taken()
    fake_clock.advance(601)
    assert job.wait().status is JobStatus.TIMED_OUT

def test_a_killed_worker_loses_no_job(endpoint, faults, platform):
    faults.set("shout:kill=1+200ms@0s-600ms")
    job = endpoint("shout").run({"text": "a", "seconds": 1})
    assert job.output() == "A"
    assert any(getattr(event, "kind", "") == "kill" for event in platform.events)

def test_faults_end_with_their_test(platform, endpoint):
    assert not platform._backstage.emulator.faults.plan.is_active

def test_workers_are_killed_by_hand(endpoint):
    job = endpoint("shout").run({"text": "k", "seconds": 1})
    job.wait_until_taken()
    endpoint("shout").kill_workers()
    assert job.output() == "K"

def test_no_such_endpoint(endpoint):
    from flashkit.errors import ConfigurationError
    with pytest.raises(ConfigurationError, match="there are shout, letters"):
        endpoint("scream")
"""


@pytest.fixture
def run_tests(pytester, monkeypatch):
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def run(tests: str, *, app: str = APP, settings: str = "pythonpath = ."):
        pytester.makefile(".ini", pytest=f"[pytest]\n{settings}\n")
        pytester.makepyfile(app=app, test_app=tests)
        return pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", timeout=240)

    return run


def test_the_fixtures_of_a_project(run_tests):
    run_tests(TESTS).assert_outcomes(passed=TESTS.count("def test_"))


def test_the_app_is_named_in_the_settings(run_tests, pytester):
    pytester.mkdir("src")
    (pytester.path / "src" / "mine.py").write_text(APP)
    tests = 'def test_it(platform):\n    assert platform.endpoints == ("shout", "letters")\n'
    run_tests(tests, settings="flashkit_app = src/mine.py").assert_outcomes(passed=1)


def test_the_app_is_found_where_flashkit_dev_finds_it(tmp_path):
    with pytest.raises(ConfigurationError, match=r"there is no app in .*: neither app\.py"):
        find_apps([], tmp_path)
    (tmp_path / "src").mkdir()
    app = tmp_path / "src" / "rp_handler.py"
    app.write_text(APP)
    assert find_apps([], tmp_path) == [app]


def test_a_project_without_an_app_is_told(run_tests, pytester):
    result = run_tests("def test_it(platform): pass\n", settings="flashkit_app = nothing.py")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*there is no app *nothing.py*"])


def test_an_app_that_does_not_import_is_told(run_tests):
    result = run_tests("def test_it(platform): pass\n", app="import nothing_of_this_name\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*nothing_of_this_name*"])


def test_projects_that_use_no_fixture_pay_nothing(pytester, monkeypatch):
    pytester.makepyfile("import sys\ndef test_it(): assert 'flashkit.testing' not in sys.modules, os.environ\n")
    assert "PATH" in os.environ
    pytester.runpytest_subprocess("-q").assert_outcomes(passed=1)
