"""One behaviour in SQLite and in Postgres: spans are kept, replaced, found, listed, and make room."""

import importlib.util
import os
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from flashkit.errors import ConfigurationError, StoreUnavailable
from flashkit.telemetry.store import SqlTraces, _Postgres, _Sqlite, open_traces
from tests.telemetry.records import TRACE, job, record

OTHER = "b" * 32


@pytest.fixture(scope="module")
def postgres_url():
    pytest.importorskip("psycopg")
    folder = tempfile.TemporaryDirectory(prefix="flashkit-postgres-")
    Path(folder.name).chmod(0o755)  # its server runs as another user where this is root
    sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))
    try:
        from servers import PostgresServer

        server = PostgresServer(Path(folder.name) / "server")
    except (ImportError, OSError, SystemExit, RuntimeError) as exc:
        message = f"no Postgres is installed: {exc}"
        if os.environ.get("FLASHKIT_REQUIRE_EVERYTHING"):
            pytest.fail(message)
        pytest.skip(message)
    finally:
        sys.path.pop(0)
    with folder, server:
        yield server.url


@pytest.fixture(params=["sqlite", "postgres"])
def database(request, tmp_path):
    if request.param == "sqlite":
        return _Sqlite(tmp_path / "a" / "traces.db")
    database = _Postgres(request.getfixturevalue("postgres_url"))
    with database.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS flashkit_spans")
    return database


@pytest.fixture
def store(database):
    store = SqlTraces(database)
    yield store
    store.close()


def test_spans_come_back_as_they_were(store):
    hostile = "<script>\x1b[31m'; DROP TABLE flashkit_spans; -- %s {0} \u202e"
    records = [
        job("a", 0, 10, tokens=3, share=0.25, reasons=["stop"], is_new=True),
        record(hostile, start=1, end=None, below="a", error=hostile, text=hostile),
    ]
    store.write(records)
    assert store.spans(TRACE) == records
    assert store.spans(OTHER) == []


def test_zero_bytes_are_left_out(store):
    store.write([record("a\0b", text="c\0d", error="e\0f")])
    assert [(each.name, each.error, each.attributes) for each in store.spans(TRACE)] == [("ab", "ef", {"text": "cd"})]


def test_a_span_that_has_ended_takes_the_place_of_the_open_one_and_stays(store):
    opened, ended = record("a", end=None, n=1), record("a", end=5, n=2)
    store.write([opened])
    store.write([replace(opened, attributes={"n": 7})])
    assert store.spans(TRACE)[0].attributes == {"n": 7}
    store.write([ended, opened])
    store.write([opened])
    assert store.spans(TRACE) == [ended]


def test_a_trace_is_found_by_its_job_its_session_and_the_begin_of_an_id(store):
    store.write([
        job("a", job_id="sync-3f2a-77", flashkit__session__id="s-1"),
        job("b", 5, job_id="9c1e-88", trace=OTHER, flashkit__session__id="s-1"),
    ])  # fmt: skip
    assert store.find("sync-3f2a-77") == store.find("3f2a-77") == store.find("3f2a") == store.find(TRACE[:8]) == [TRACE]
    assert store.find("9c1e-88") == [OTHER]
    assert store.find("s-1") == [OTHER, TRACE]
    assert store.find("3f2") == store.find("%") == store.find("____") == store.find("") == []


def test_the_newest_traces_are_listed_first_with_what_became_of_them(store):
    store.write([
        job("agent", 0, 10, error="it broke"),
        record("x", start=1, end=12, below="agent"),
        job("tool", 5, None, job_id="job-2", trace=OTHER),
    ])  # fmt: skip
    newest, older = store.latest(5)
    assert (newest.trace_id, newest.job_id, newest.name, newest.end_ns) == (OTHER, "job-2", "tool", 0)
    assert (older.trace_id, older.name, older.spans, older.error) == (TRACE, "agent", 2, "it broke")
    assert (older.end_ns - older.start_ns) == 12_000_000
    assert [each.trace_id for each in store.latest(1)] == [OTHER]


def test_old_spans_make_room_for_new_ones(database):
    store = SqlTraces(database, span_limit=10, trim_every=5)
    for number in range(40):
        store.write([record(f"{number}", start=number, end=number + 1, trace=f"{number + 1:032x}")])
    kept = [number for number in range(40) if store.spans(f"{number + 1:032x}")]
    store.close()
    assert kept == list(range(kept[0], 40))
    assert 10 <= len(kept) <= 15


def test_threads_share_a_store(store):
    def write(first):
        for number in range(first, first + 50):
            store.write([record(f"{number}", start=number)])

    threads = [threading.Thread(target=write, args=(first,)) for first in (1000, 2000, 3000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.spans(TRACE)) == 150


def test_two_processes_share_a_file(tmp_path):
    url = f"sqlite:///{tmp_path}/traces.db"
    writer, reader = open_traces(url), open_traces(url)
    writer.write([record("a")])
    assert len(reader.spans(TRACE)) == 1
    writer.close()
    reader.close()


def test_a_server_that_is_not_there_is_said_with_what_to_do():
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed")
    with pytest.raises(StoreUnavailable, match="Postgres") as caught:
        open_traces("postgresql://nobody@127.0.0.1:9/none")
    assert "FLASHKIT_TRACE_STORE" in (caught.value.report.hint or "")


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="traces cannot be kept"):
        open_traces(f"sqlite:///{tmp_path}/file/traces.db")


def test_a_damaged_file_is_said(tmp_path):
    (tmp_path / "traces.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreUnavailable, match="traces cannot be kept"):
        open_traces(f"sqlite:///{tmp_path}/traces.db")


@pytest.mark.parametrize("url", ["redis://h/0", "", "traces.db"])
def test_other_urls_are_refused(url):
    with pytest.raises(ConfigurationError, match="no store of traces"):
        open_traces(url)
