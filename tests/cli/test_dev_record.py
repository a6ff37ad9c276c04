"""Several `flashkit dev` in one folder: clients find the newest that runs, however the others ended."""

import json
import signal

import pytest


def records(folder) -> list[str]:
    return sorted(path.name for path in (folder / ".flashkit").glob("dev*.json"))


@pytest.fixture
def two(project, start_dev):
    """Two servers in one folder, the newer one last."""
    return start_dev(project, "app.py"), start_dev(project, "app.py")


def test_the_end_of_the_second_leaves_the_first_to_be_found(project, two, flashkit):
    first, second = two
    assert json.loads(second.record.read_text())["pid"] == second.process.pid
    second.stop()
    assert json.loads(first.record.read_text())["pid"] == first.process.pid
    assert first.record.stat().st_mode & 0o777 == 0o600
    assert "hello Ada" in flashkit("run", "greet", '{"name": "Ada"}', folder=project).out
    first.stop()
    assert records(project) == []


def test_the_end_of_the_first_leaves_the_second_to_be_found(project, two, flashkit):
    first, second = two
    first.stop()
    assert json.loads(second.record.read_text())["pid"] == second.process.pid
    assert "hello Ada" in flashkit("run", "greet", '{"name": "Ada"}', folder=project).out
    second.stop()
    assert records(project) == []


def test_when_the_second_is_killed_the_first_is_found_and_the_next_clears_up(project, two, flashkit, start_dev):
    first, second = two
    workers = second.family()
    second.send(signal.SIGKILL)
    second.end()
    for process in workers:
        process.wait(timeout=15)
    assert "hello Ada" in flashkit("run", "greet", '{"name": "Ada"}', folder=project).out
    third = start_dev(project, "app.py")
    assert f"dev.{second.process.pid}.json" not in records(project)
    third.stop()
    first.stop()
    assert records(project) == []
