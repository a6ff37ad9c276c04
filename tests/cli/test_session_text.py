"""Sessions as text: what each state looks like, built from records as a worker leaves them."""

import io

import pytest
from rich.console import Console

from flashkit.cli.session_text import differences, next_command, session_timeline, sessions_table
from flashkit.errors import RecordCorrupt
from flashkit.worker.sessions.comparing import Difference
from flashkit.worker.sessions.records import Kind, Record
from flashkit.worker.sessions.store import Head, Image, Status
from flashkit.worker.sessions.timeline import Summary, view_session

TURN = Record(Kind.TURN, "turn:1", b'{"q":1}', extra={"request": "j1", "endpoint": "agent"}, started_ms=1000, code="c1")


def head(status=Status.RUNNING, **fields):
    given = {
        "session": "s1", "incarnation": "i", "reason": "", "fence": 1, "owner": "w1", "lease_left_s": 0.0,
        "heartbeat": 1, "seq": 9, "last_crc": 0, "snapshot_seq": 0, "turn": 0, "attempts": 1, "code": "c1",
        "info": b"", "pending": 0, "consumed": 0, "stored_bytes": 1234, "created_ms": 0, "updated_ms": 1000,
    }  # fmt: skip
    return Head(status=status, **{**given, **fields})


def view(*records, damage=None, **fields):
    return view_session(Image(head(**fields), None, (TURN, *records), damage))


def shown(renderable):
    console = Console(file=io.StringIO(), width=140)
    console.print(renderable)
    return console.file.getvalue()


def done(key, **fields):
    return Record(Kind.RESULT, key, **{"output": b"1", "started_ms": 1000, "seconds": 1.0, "code": "c1", **fields})


def test_a_session_whose_worker_is_gone_says_so_and_is_to_be_resumed():
    text = shown(session_timeline(view(done("a"), attempts=3)))
    assert "interrupted" in text
    assert "attempt 3" in text
    assert "worker w1 left or died in it" in text
    assert "next: flashkit sessions resume s1" in text


def test_a_session_that_runs_says_who_has_it_and_needs_nothing():
    running = view(Record(Kind.ATTACH, "call:x", b'{"job":"abc"}', started_ms=1500), lease_left_s=4.0)
    assert next_command(running) is None
    text = shown(session_timeline(running))
    assert "worker w1 has it for 4 s more" in text
    assert "░" in text
    assert "job abc" in text


def test_what_a_session_has_used_is_told_by_model_and_endpoint():
    used = {
        "endpoint": "llm", "seconds": 1.5, "gpu": "NVIDIA L4", "usd": 0.0012,
        "model": "tiny", "input_tokens": 1_030, "output_tokens": 12,
    }  # fmt: skip
    step = done("a", extra={"spent": {"tokens": 7, "cost_usd": 0.25}})
    text = shown(session_timeline(view(done("call:llm", extra={"used": used}), step)))
    assert "used: tiny: 1,030 tokens in, 12 out in 1 call" in text
    assert "used: llm: 1.5 s on NVIDIA L4 in 1 call, at most $0.0012" in text
    assert "used: 7 tokens and $0.2500 by session.spend()" in text
    assert "used:" not in shown(session_timeline(view(done("a"))))


def test_a_damaged_session_is_to_be_rewound():
    damaged = view(done("a"), damage=RecordCorrupt("bytes are no record"))
    assert next_command(damaged) == "flashkit sessions rewind s1 --to last-good   (or quarantine s1)"
    text = shown(session_timeline(damaged))
    assert "session s1  damaged" in text
    assert "the journal is damaged here: bytes are no record" in text


def test_a_step_whose_outcome_is_unknown_is_to_be_settled():
    unknown = view(Record(Kind.INTENT, "pay"), status=Status.BLOCKED, reason="OutcomeUnknown: pay")
    assert next_command(unknown) == "flashkit sessions settle s1 pay --result JSON   (or --again)"
    assert "unknown" in shown(session_timeline(unknown))


@pytest.mark.parametrize("key", ["event:word", "gather1[0]/event:word#2"])
def test_a_session_that_waits_is_to_be_told(key):
    waiting = view(Record(Kind.INTENT, key), status=Status.WAITING)
    assert next_command(waiting) == "flashkit sessions event s1 word JSON"


def test_what_is_unusual_about_a_step_is_noted():
    settled = done("b", extra={"settled": True})
    text = shown(session_timeline(view(done("a", attempt=2), settled, done("c", blob="x"), done("d", code="c2"))))
    for note in ("attempt 2", "settled by a person", "in a blob", "by code c2"):
        assert note in text


def test_a_damaged_journal_is_shown_up_to_the_damage():
    text = shown(session_timeline(view(done("a"), damage=RecordCorrupt("record 3 is damaged"))))
    assert "  a " in text
    assert "record 3 is damaged" in text


def test_a_session_without_steps_says_why():
    empty = view_session(Image(head(Status.IDLE), None, ()))
    assert "were not kept" in shown(session_timeline(empty))


def test_a_long_value_is_cut():
    found = [Difference("$.a", "changed", "x" * 100, 1), Difference("$.b", "removed", None)]
    lines = differences(found).plain.splitlines()
    assert lines[0].startswith('~ $.a  "xxx')
    assert lines[0].endswith("… → 1")
    assert lines[1] == "- $.b  null"


def test_the_list_says_how_long_ago_a_session_changed():
    table = sessions_table([Summary.from_image(Image(head(Status.IDLE, updated_ms=1000), None, ()))], now_ms=181_000)
    assert "3 min ago" in shown(table)
