"""`flashkit sessions` beside a running `flashkit dev`, and where it looks for sessions without one."""

import asyncio
import json
import re
import time

import pytest

from flashkit.worker.sessions.records import Kind, Record
from flashkit.worker.sessions.store import Change, Status, open_store
from tests.sessions.vandal import Vandal

AGENT = """
from pydantic import BaseModel

from flashkit import Session, orchestrator_endpoint


class Notes(BaseModel):
    words: list[str] = []


def shout(word: str) -> str:
    print("shouting", word)
    if word == "nothing":
        raise LookupError("there is nothing to shout")
    return word.upper()


@orchestrator_endpoint(name="agent")
async def agent(session: Session[Notes], word: str, ask: bool = False, patience: float | None = None) -> str:
    loud = await session.step("shout", shout, word)
    if ask:
        try:
            loud += await session.wait_for("more", timeout=patience)
        except TimeoutError:
            loud += ", alone"
    session.state.words.append(loud)
    return loud
"""


@pytest.fixture(scope="module")
def sessions(tmp_path_factory, start_shared_dev, flashkit):
    """Run commands in the folder of one server that all tests share; each uses sessions of its own."""
    folder = tmp_path_factory.mktemp("agents")
    (folder / "app.py").write_text(AGENT)
    dev = start_shared_dev(folder, "--no-reload", FLASHKIT_NAMESPACE="of-tests")

    def run(*arguments, **environment):
        return flashkit(*arguments, folder=folder, **environment)

    def damage(session, *, record):
        store = json.loads(dev.record.read_text())["state"]
        asyncio.run(Vandal(store, "of-tests", session).flip_record(record))

    run.damage = damage
    return run


def begin(sessions, session, **data):
    result = sessions("run", "agent", json.dumps({"session_id": session, **data}), "--json")
    return json.loads(result.out) if result.code == 0 else result.err


def test_sessions_are_found_in_the_store_and_namespace_of_the_running_server(sessions):
    begin(sessions, "l1", word="a")
    begin(sessions, "l2", word="b", ask=True)
    listed = json.loads(sessions("sessions", "list", "--json").out)
    assert [(each["session"], each["status"]) for each in listed][:2] == [("l2", "waiting"), ("l1", "idle")]
    shown = sessions("sessions", "list", "--limit", "1").out
    assert re.search(r"^session\tstatus", shown)
    assert re.search(r"^l2\twaiting\t0\t.* ago\t.* B\twaits for event 'more'$", shown, re.MULTILINE)
    assert "l1" not in shown


def test_a_timeline_has_a_bar_for_every_step_and_the_next_command(sessions):
    begin(sessions, "t1", word="a")
    begin(sessions, "t1", word="b", ask=True)
    shown = sessions("sessions", "show", "t1").out
    assert re.search(r"^session t1  waiting  endpoint agent · ", shown)
    assert "next: flashkit sessions event t1 more JSON" in shown
    assert re.search(r'^turn 1  done  .* · code \w{8}  {"word":"a"}$', shown, re.MULTILINE)
    assert len(re.findall(r"^  shout +step +done .* 3 B +█+ *$", shown, re.MULTILINE)) == 2
    assert re.search(r"^  event:more +event +waiting", shown, re.MULTILINE)
    assert "\x1b" not in shown


def test_a_timeline_is_offered_as_json(sessions):
    begin(sessions, "j1", word="a")
    told = json.loads(sessions("sessions", "show", "j1", "--json").out)
    assert told["turns"][0]["endpoint"] == "agent"
    assert (
        told["turns"][0]["steps"][0] | {"key": "shout", "state": "done", "preview": '"A"'}
        == told["turns"][0]["steps"][0]
    )


def test_an_event_lets_the_turn_end_and_its_output_is_printed(sessions):
    assert begin(sessions, "e1", word="a", ask=True)["status"] == "waiting"
    result = sessions("sessions", "event", "e1", "more", '"!"')
    assert (result.code, result.out) == (0, "A!\n")
    kept = sessions("sessions", "event", "e1", "more", '"?"')
    assert (kept.code, kept.out) == (0, "")
    assert "kept for the next one" in kept.err
    assert begin(sessions, "e1", word="b", ask=True) == "B?"


def test_a_failed_turn_is_resumed_where_it_stands(sessions):
    assert "there is nothing to shout" in begin(sessions, "r1", word="nothing")
    assert "next: flashkit sessions resume r1" in sessions("sessions", "show", "r1").out
    result = sessions("sessions", "resume", "r1")
    assert result.code == 1
    assert "LookupError: there is nothing to shout" in result.err
    begin(sessions, "r2", word="a", ask=True)
    assert json.loads(sessions("sessions", "resume", "r2", "--json").out)["event"] == "more"
    assert re.fullmatch(r"[0-9a-f-]{36}\n", sessions("sessions", "resume", "r2", "--wait", "0").out)


def test_what_cannot_be_resumed_is_said(sessions):
    begin(sessions, "r3", word="a")
    done = sessions("sessions", "resume", "r3")
    assert done.code == 2
    assert "no turn under way" in done.err
    gone = sessions("sessions", "resume", "r4")
    assert gone.code == 1
    assert "'r4'" in gone.err
    assert "Traceback" not in gone.err


def test_a_fork_goes_on_by_itself_and_differs_in_what_it_did(sessions):
    begin(sessions, "f1", word="a")
    begin(sessions, "f1", word="b")
    result = sessions("sessions", "fork", "f1", "f2", "--turn", "2", "--state", '{"words": ["z"]}')
    assert result.out == "f2 has 1 steps of f1\nlet it go on with: flashkit sessions resume f2\n"
    assert "forked from f1, turn 2" in sessions("sessions", "show", "f2").out
    assert sessions("sessions", "resume", "f2").out == "B\n"
    assert sessions("sessions", "diff", "f1", "f2").out == '~ $.state.words[0]  "A" → "z"\n'
    found = json.loads(sessions("sessions", "diff", "f1@1", "f1@2", "--json").out)
    assert {"path": "$.state.words[1]", "what": "added", "before": None, "after": "B"} in found
    assert sessions("sessions", "diff", "f1", "f1").out == "no difference\n"


def test_a_fork_runs_again_from_a_step_with_an_edited_state(sessions):
    begin(sessions, "g1", word="a")
    assert sessions("sessions", "fork", "g1", "g2", "--at", "shout", "--state", '{"words": ["z"]}').code == 0
    assert sessions("sessions", "resume", "g2").out == "A\n"
    assert sessions("sessions", "diff", "g1", "g2").out == '~ $.state.words[0]  "A" → "z"\n+ $.state.words[1]  "A"\n'


def test_a_damaged_session_is_shown_blocked_and_brought_back(sessions):
    begin(sessions, "q1", word="a")
    begin(sessions, "q1", word="b", ask=True)
    sessions.damage("q1", record=5)
    listed = sessions("sessions", "list").out
    assert re.search(
        r"^q1\tdamaged\t1\t.*\ta stored record is damaged: its checksum is another one$", listed, re.MULTILINE
    )
    shown = sessions("sessions", "show", "q1").out
    assert re.search(r"^session q1  damaged", shown)
    assert "next: flashkit sessions rewind q1 --to last-good" in shown
    assert "the journal is damaged here" in shown
    refused = sessions("sessions", "resume", "q1")
    assert (refused.code, "is damaged" in refused.err) == (1, True)
    assert "RecordCorrupt" in sessions("run", "agent", '{"session_id": "q1", "word": "b", "ask": true}', "--json").err

    blocked = sessions("sessions", "quarantine", "q1").out
    assert blocked.startswith("q1 is blocked: quarantined: a stored record is damaged")
    assert blocked.endswith("open it again with: flashkit sessions rewind q1 --to last-good\n")
    assert "is blocked" in sessions("run", "agent", '{"session_id": "q1", "word": "b", "ask": true}').err

    rewound = sessions("sessions", "rewind", "q1", "--to", "last-good").out
    found = re.fullmatch(
        r"q1: 1 records taken off; all of it as it was is (q1\.aside-\w+)\n"
        r"let it go on with: flashkit sessions resume q1\n",
        rewound,
    )
    assert found, rewound
    assert json.loads(sessions("sessions", "resume", "q1", "--json").out)["event"] == "more"
    assert sessions("sessions", "event", "q1", "more", '"!"').out == "B!\n"
    assert "set aside when q1 was rewound" in sessions("sessions", "show", found[1]).out
    assert sessions("sessions", "delete", found[1]).code == 0


def test_a_whole_session_is_rewound_to_a_step_or_the_end_of_a_turn(sessions):
    for word in "abc":
        begin(sessions, "w1", word=word)
    assert sessions("sessions", "rewind", "w1", "--to", "last-good").out == "w1 is whole: nothing was taken off\n"
    assert "let it go on" in sessions("sessions", "rewind", "w1", "--to", "shout", "--turn", "2").out
    assert sessions("sessions", "resume", "w1").out == "B\n"
    assert "let it go on" not in sessions("sessions", "rewind", "w1", "--turn", "1").out
    assert begin(sessions, "w1", word="d") == "D"
    quarantined = sessions("sessions", "quarantine", "w1", "--reason", "odd").out
    assert quarantined.startswith("w1 is blocked: quarantined: odd\n")


def test_a_deleted_session_is_gone(sessions):
    begin(sessions, "d1", word="a")
    assert sessions("sessions", "delete", "d1").out == "deleted d1\n"
    assert sessions("sessions", "show", "d1").code == 1
    assert sessions("sessions", "delete", "d1").code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["settle", "s1", "pay"], "either --result JSON"),
        (["settle", "s1", "pay", "--result", "1", "--again"], "either --result JSON"),
        (["settle", "s1", "pay", "--result", "{"], "is not JSON"),
        (["event", "s1", "word", "yes"], "is not JSON"),
        (["diff", "s1", "s1@last"], "no number of a turn"),
        (["fork", "s1", "s2", "--turn", "0"], "--turn"),
        (["rewind", "s1"], "--to last-good"),
        (["rewind", "s1", "--to", "last-good", "--turn", "1"], "goes with a step"),
        (["list", "--store", "http://127.0.0.1"], "is not a store for sessions"),
        (["show", "no id"], "is not a session's id"),
    ],
)
def test_a_wrong_command_line_exits_with_2(sessions, arguments, message):
    result = sessions("sessions", *arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err


def test_a_variable_and_an_option_name_other_stores(sessions, tmp_path):
    begin(sessions, "v1", word="a")
    other = f"sqlite:///{tmp_path}/other.db"
    assert f"there are no sessions in {other}" in sessions("sessions", "list", "--store", other).out
    assert f"there are no sessions in {other}" in sessions("sessions", "list", FLASHKIT_STATE=other).out
    assert sessions("sessions", "show", "v1", FLASHKIT_NAMESPACE="elsewhere").code == 1


def test_a_store_that_does_not_answer_is_named_without_its_password(flashkit, tmp_path):
    result = flashkit("sessions", "list", "--store", "redis://:secret@127.0.0.1:1/0", folder=tmp_path)
    assert result.code == 1
    assert "127.0.0.1:1" in result.err
    assert "secret" not in result.err
    assert "Traceback" not in result.err


def test_the_help_of_the_group_and_of_a_command_is_quick_to_read(flashkit, tmp_path):
    shown = flashkit("sessions", "--help", folder=tmp_path).out
    for name in ("list", "show", "resume", "event", "fork", "quarantine", "rewind", "settle", "delete", "diff"):
        assert re.search(rf"^  {name} ", shown, re.MULTILINE)


def test_a_wait_that_times_out_goes_on_by_itself(sessions):
    assert begin(sessions, "due1", word="a", ask=True, patience=0.5)["status"] == "waiting"
    until(lambda: status_of(sessions, "due1") == "idle")
    assert json.loads(sessions("sessions", "show", "due1", "--json").out)["turns"][0]["state"] == "done"


def test_what_is_due_is_resumed_once_where_nobody_else_does_it(tmp_path, sessions):
    refused = sessions("sessions", "resume")
    assert (refused.code, "--due" in refused.err) == (2, True)
    assert sessions("sessions", "resume", "x", "--due").code == 2
    store = f"sqlite:///{tmp_path}/other.db"
    assert sessions("sessions", "resume", "--due", "--store", store).out == ""
    asyncio.run(leave_waiting(store))
    done = json.loads(sessions("sessions", "resume", "--due", "--store", store, "--json").out)
    assert [(each["session"], each["endpoint"], bool(each["job"])) for each in done] == [("late", "agent", True)]
    assert sessions("sessions", "resume", "--due", "--store", store).out == ""  # a job is on its way


def test_an_event_that_the_session_does_not_wait_for_is_named_beside_the_one_it_waits_for(sessions):
    begin(sessions, "ev1", word="a", ask=True)
    sent = sessions("sessions", "event", "ev1", "moer", "1")
    assert sent.code == 0
    assert "ev1 waits for 'more'; 'moer' is kept" in sent.err
    assert "waits for" not in sessions("sessions", "event", "ev1", "more", '"!"').err


def test_a_list_in_a_pipe_has_whole_ids_between_tabs(sessions):
    long = "l" * 128
    begin(sessions, long, word="a")
    lines = sessions("sessions", "list", "--limit", "1").out.splitlines()
    assert [line.split("\t")[:2] for line in lines] == [["session", "status"], [long, "idle"]]
    assert len(lines[1].split("\t")) == 6


def status_of(sessions, session):
    listed = json.loads(sessions("sessions", "list", "--json").out)
    return next(each["status"] for each in listed if each["session"] == session)


def until(condition, *, seconds=60):
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.2)


async def leave_waiting(url):
    """Leave a session as a worker does whose handler waits for an event, with a timeout that is over."""
    store = open_store(url, namespace="of-tests")
    lease = await store.acquire("late", "w1")
    turn = Record(Kind.TURN, "turn:1", b'{"word": "a"}', extra={"request": "j", "endpoint": "agent"})
    await store.commit(lease, [turn], Change(status=Status.WAITING, due_ms=1, release=True))
    await store.close()
