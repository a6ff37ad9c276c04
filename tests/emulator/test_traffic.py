"""Traffic: what is recorded of submissions, and how it is played again."""

from __future__ import annotations

import asyncio
import math
import stat
from pathlib import Path

import orjson
import pytest

from flashkit.emulator.clock import Clock
from flashkit.emulator.jobs import JobRequest
from flashkit.emulator.traffic import HttpSubmitter, TrafficRecorder, read_traffic, replay
from flashkit.errors import ConfigurationError, InputError

FULL_DISK = Path("/dev/full")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "traffic.jsonl"


def lines_of(file):
    return [orjson.loads(line) for line in file.read_text().splitlines()]


async def test_a_line_says_what_was_submitted_and_when(file):
    clock = Clock(speed=0, start=50.0)
    with TrafficRecorder(file, now=clock.now) as recorder:
        await clock.advance(1.25)
        recorder.note("embed", JobRequest({"text": "é"}, ttl_ms=60_000, low_priority=True), sync=False)
        recorder.note("chat", JobRequest(None), sync=True)
    assert lines_of(file) == [
        {"at": 1.25, "endpoint": "embed", "sync": False, "input": {"text": "é"},
         "policy": {"ttl": 60_000, "lowPriority": True}},
        {"at": 1.25, "endpoint": "chat", "sync": True, "input": None},
    ]  # fmt: skip
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_credentials_and_places_are_not_recorded(file):
    request = JobRequest({}, webhook="http://127.0.0.1/hook", extra={"s3Config": {"accessSecret": "hush"}})
    with TrafficRecorder(file, now=lambda: 0.0) as recorder:
        recorder.note("embed", request, sync=False)
    assert "hush" not in file.read_text()
    assert "hook" not in file.read_text()


def test_a_large_input_is_kept_as_its_digest_with_a_note(file):
    with TrafficRecorder(file, now=lambda: 0.0, body_limit_bytes=100) as recorder:
        recorder.note("embed", JobRequest("x" * 99, execution_timeout_ms=9_000), sync=False)
    (line,) = lines_of(file)
    assert "input" not in line
    assert (line["bytes"], line["policy"]) == (101, {"executionTimeout": 9_000})
    assert "left out" in line["note"]
    assert len(line["blake2b"]) == 32
    assert [submission.request for submission in read_traffic(file)] == [None]


def test_what_was_recorded_is_read_again(file):
    requests = [JobRequest({"n": n}, execution_timeout_ms=9_000, ttl_ms=20_000, low_priority=True) for n in range(3)]
    with TrafficRecorder(file, now=lambda: 7.0) as recorder:
        for request in requests:
            recorder.note("embed", request, sync=False)
    assert [submission.request for submission in read_traffic(file)] == requests


def test_a_file_that_exists_is_not_written_over(file):
    file.write_text("precious")
    with pytest.raises(ConfigurationError, match="exists"), TrafficRecorder(file, now=lambda: 0.0):
        pass
    assert file.read_text() == "precious"


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ConfigurationError, match="No such file"), TrafficRecorder(tmp_path / "a" / "b", now=lambda: 0):
        pass


@pytest.mark.skipif(not FULL_DISK.exists(), reason="this system has no /dev/full")
def test_a_full_disk_ends_the_recording_and_nothing_else(file, caplog):
    with TrafficRecorder(file, now=lambda: 0.0) as recorder, FULL_DISK.open("w", buffering=1) as full:
        recorder._file.close()
        recorder._file = full
        recorder.note("embed", JobRequest({}), sync=False)
        recorder.note("embed", JobRequest({}), sync=False)
    assert "the recording in" in caplog.text
    assert caplog.text.count("No space left") >= 1


@pytest.mark.parametrize(
    "line",
    ["nonsense", "[]", '{"at": 1}', '{"at": "x", "endpoint": "e"}', '{"at": 1, "endpoint": 2, "input": 1}',
     '{"at": 1, "endpoint": "e"}', '{"at": 1, "endpoint": "e", "input": 1, "policy": {"ttl": 1}}'],
)  # fmt: skip
def test_a_line_that_is_none_is_named(file, line):
    file.write_text('{"at": 0, "endpoint": "e", "input": 1}\n\n' + line + "\n")
    with pytest.raises(InputError, match=r"traffic\.jsonl:3 is no line of a recording"):
        list(read_traffic(file))


def test_a_recording_that_is_not_there_is_said(file):
    with pytest.raises(InputError, match="cannot be read"):
        list(read_traffic(file))


async def test_a_replay_keeps_the_times_between_jobs(file):
    clock = Clock(speed=0, start=0.0)
    with TrafficRecorder(file, now=clock.now) as recorder:
        for seconds in (1, 2, 4):
            await clock.advance(seconds)
            recorder.note("embed", JobRequest(seconds), sync=False)
    seen = []

    async def submit(submission, request):
        seen.append((request.input, clock.now()))

    begin = clock.now()
    task = asyncio.ensure_future(replay(read_traffic(file), submit, speed=2.0, sleep=clock.sleep))
    await clock.advance(3.5)
    outcome = await task
    assert [(value, now - begin) for value, now in seen] == [(1, 0.5), (2, 1.5), (4, 3.5)]
    assert (outcome.submitted, outcome.left_out, outcome.refused) == (3, 0, [])


@pytest.mark.parametrize("speed", [0, -1, math.nan])
async def test_a_replay_needs_a_speed(speed):
    with pytest.raises(InputError, match="speed"):
        await replay([], None, speed=speed)


async def test_traffic_of_one_emulator_is_replayed_on_another(tmp_path, start_emulator, make_endpoint, http):
    """Through HTTP: jobs that are gone, refused or too large are counted."""
    recording = tmp_path / "recording.jsonl"
    first = await start_emulator(make_endpoint("actions", "actions"), record_to=recording, capacity=0)
    for n in range(3):
        await http("POST", f"{first.url}/v2/actions/run", json={"input": {"n": n}, "policy": {"ttl": 60_000}})
    await http("POST", f"{first.url}/v2/actions/run", json={"input": "x" * 300_000})
    refused = await http("POST", f"{first.url}/v2/actions/run", json={"nothing": 1})
    assert refused.status == 400
    with recording.open("a") as file:
        file.write('{"at": 0.1, "endpoint": "gone", "input": {}}\n')

    second = await start_emulator(make_endpoint("actions", "actions"), capacity=0)
    async with HttpSubmitter(second.url) as submit:
        outcome = await replay(read_traffic(recording), submit, speed=math.inf)
    assert (outcome.submitted, outcome.left_out, len(outcome.refused)) == (3, 1, 1)
    assert "gone at 0.1 s" in outcome.refused[0]
    jobs = second.platform.jobs("actions")
    assert sorted(job.input["n"] for job in jobs) == [0, 1, 2]
    assert {job.ttl_ms for job in jobs} == {60_000}


async def test_a_replay_says_what_does_not_answer(file, unused_tcp_port):
    file.write_text('{"at": 0, "endpoint": "e", "input": 1, "sync": true}\n')
    async with HttpSubmitter(f"http://127.0.0.1:{unused_tcp_port}") as submit:
        outcome = await replay(read_traffic(file), submit)
    assert "does not answer" in outcome.refused[0]


async def test_an_emulator_does_not_start_when_it_cannot_record(file, start_emulator, make_endpoint):
    file.write_text("precious")
    with pytest.raises(ConfigurationError, match="exists"):
        await start_emulator(make_endpoint("actions", "actions"), record_to=file)
