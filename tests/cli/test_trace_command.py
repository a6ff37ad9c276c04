"""`flashkit trace`: without a server, from the file that `flashkit dev` left."""

import json

import pytest

from flashkit.telemetry.store import open_traces
from tests.telemetry.records import TRACE, job, record

OTHER = "b" * 32


@pytest.fixture
def project(tmp_path):
    """A folder in which a `flashkit dev` has run."""
    store = open_traces(f"sqlite:///{tmp_path}/.flashkit/traces.db")
    store.write([
        job("platform", 0, 5_000, op="platform", worker="", error="ended by the platform"),
        job("agent", 10, None, flashkit__session__id="s-1"),
        record("search", "tool", 100, None, below="agent"),
        job("quick", 9_000, 9_010, job_id="sync-77aa", trace=OTHER),
    ])  # fmt: skip
    store.close()
    return tmp_path


def test_the_list_has_the_newest_first(project, flashkit):
    below = project / "src"
    below.mkdir()
    done = flashkit("trace", folder=below)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].split() == ["job", "endpoint", "began", "took", "spans", "error"]
    assert lines[1].startswith("sync-77aa")
    assert "ended by the platform" in lines[2]
    listed = json.loads(flashkit("trace", "list", "--limit", "1", "--json", folder=project).out)
    assert [each["trace_id"] for each in listed] == [OTHER]


def test_a_job_is_shown_as_a_tree_and_what_hung_is_exit_code_one(project, flashkit):
    done = flashkit("trace", "job-1", folder=project)
    assert done.code == 1
    assert "tool 'search' was running for 4.9 s and never ended; ended by the platform" in done.out
    assert "\n    tool search" in done.out
    told = json.loads(flashkit("trace", "s-1", "--json", folder=project).out)
    assert told["hung"] == next(row["span_id"] for row in told["spans"] if row["name"] == "search")


def test_the_begin_of_an_id_is_enough(project, flashkit):
    assert flashkit("trace", "77aa", folder=project).code == 0
    assert TRACE in flashkit("trace", TRACE[:10], folder=project).out


def test_what_is_not_there_is_said_with_what_to_do(project, tmp_path_factory, flashkit):
    done = flashkit("trace", "nobody", folder=project)
    assert (done.code != 0, "there is no trace of 'nobody'" in done.err) == (True, True)
    empty = tmp_path_factory.mktemp("empty")
    assert "no traces are kept in this folder" in flashkit("trace", folder=empty).err
    assert (
        "there is no sqlite:///nowhere.db"
        in flashkit("trace", "list", "--store", "sqlite:///nowhere.db", folder=empty).err
    )
    assert "no store of traces" in flashkit("trace", "list", "--store", "redis://h/0", folder=empty).err


def test_a_replay_says_which_app_it_needs(project, flashkit):
    done = flashkit("trace", "replay", "job-1", folder=project)
    assert "there is no app" in done.err


def test_an_empty_store_is_said(tmp_path, flashkit):
    open_traces(f"sqlite:///{tmp_path}/.flashkit/traces.db").close()
    assert "no traces yet" in flashkit("trace", folder=tmp_path).out
