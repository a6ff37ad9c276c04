"""The recorder: what it keeps, what it drops, and that its memory is bounded."""

from __future__ import annotations

import asyncio

import pytest

from flashkit.emulator import recorder as module
from flashkit.emulator.events import JobEvent, LogLine, WorkerEvent
from flashkit.emulator.recorder import Filter, Recorder, describe, type_of
from flashkit.errors import ErrorReport
from flashkit.protocol import JobStatus


class Time:
    """A time of day that tests move."""

    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Time()


@pytest.fixture
def recorder(clock):
    return Recorder(clock=clock)


def job_event(job_id="j", status=JobStatus.IN_PROGRESS, *, worker_id="w", attempt=1, error=None):
    worker_id = None if status is JobStatus.IN_QUEUE else worker_id
    return JobEvent("e", job_id, status, attempt, worker_id, 5, 7, None, error, 10, 20)


def line(text, *, worker_id="w", job_id=None):
    return LogLine("e", worker_id, job_id, None, text)


def texts(entries):
    return [entry.event.text for entry in entries]


def test_readers_get_what_followed_the_number_they_know(recorder):
    recorder.record(WorkerEvent("e", "w", "starting"))
    recorder.record(line("hello"))
    recorder.record(job_event())
    first = recorder.after(0, limit=2)
    assert [entry.n for entry in first.entries] == [1, 2]
    assert first.next == 2
    second = recorder.after(first.next, limit=2)
    assert [type_of(entry.event) for entry in second.entries] == ["job"]
    assert second.next == 3
    assert recorder.after(3, limit=2).entries == []


def test_filters_choose_by_type_endpoint_job_and_worker(recorder):
    recorder.record(WorkerEvent("e", "w", "starting"))
    recorder.record(line("mine", job_id="j"))
    recorder.record(line("other's", worker_id="v"))
    recorder.record(job_event())
    chosen = {
        Filter(types=("log",)): [2, 3],
        Filter(types=("worker", "job")): [1, 4],
        Filter(endpoint="no-such"): [],
        Filter(job_id="j"): [2, 4],
        Filter(worker_id="v"): [3],
    }
    for wanted, numbers in chosen.items():
        assert [entry.n for entry in recorder.after(0, limit=99, wanted=wanted).entries] == numbers
        assert [entry.n for entry in recorder.latest(1, wanted=wanted).entries] == numbers[-1:]


def test_a_read_without_matches_still_moves_on(recorder):
    recorder.record(line("hello"))
    assert recorder.after(0, limit=9, wanted=Filter(types=("job",))).next == 1


def test_a_job_keeps_its_timeline_and_the_lines_of_its_worker(recorder, clock):
    recorder.record(job_event(status=JobStatus.IN_QUEUE, attempt=0))
    recorder.record(line("before it began"))
    recorder.record(job_event())
    recorder.record(line("while it ran"))
    recorder.record(job_event(status=JobStatus.COMPLETED))
    recorder.record(line("came in a moment late"))
    clock.now += 10
    recorder.record(line("long after"))
    story = recorder.jobs["j"]
    assert [entry.event.status for entry in story.timeline] == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    assert texts(recorder.lines_of_job("j")) == ["while it ran", "came in a moment late"]


def test_lines_of_a_worker_with_several_jobs_are_nobodys_unless_they_name_their_job(recorder):
    recorder.record(job_event("a"))
    recorder.record(job_event("b"))
    recorder.record(line("whose?"))
    recorder.record(line("a's", job_id="a"))
    assert texts(recorder.lines_of_job("a")) == ["a's"]
    assert recorder.lines_of_job("b") == []


def test_a_dead_workers_job_does_not_get_the_lines_of_the_next(recorder):
    recorder.record(job_event("a"))
    recorder.record(WorkerEvent("e", "w", "exited"))
    recorder.record(job_event("a", JobStatus.IN_QUEUE))
    recorder.record(line("nobody's"))
    recorder.record(job_event("a", worker_id="x", attempt=2))
    recorder.record(line("second attempt", worker_id="x"))
    assert texts(recorder.lines_of_job("a")) == ["second attempt"]


def test_a_flood_pushes_out_its_own_lines_only(recorder):
    recorder.record(job_event("quiet", worker_id="v"))
    recorder.record(line("still here", worker_id="v"))
    recorder.record(job_event("noisy"))
    for number in range(100_000):
        recorder.record(line(f"{number} " + "x" * 1000))
    assert texts(recorder.lines_of_job("quiet")) == ["still here"]
    assert texts(recorder.after(0, limit=99_999, wanted=Filter(worker_id="v", types=("log",))).entries) == [
        "still here"
    ]
    assert texts(recorder.lines_of_job("noisy"))[-1].startswith("99999 ")
    assert recorder.lines_bytes < module.WORKER_LINES_BYTES + module.JOB_LINES_BYTES + 10_000
    assert not recorder.after(0, limit=10).is_complete
    assert recorder.after(recorder.count - 5, limit=10).is_complete


def test_many_noisy_workers_and_jobs_stay_within_one_bound(recorder):
    for number in range(200):
        recorder.record(job_event(f"j{number}", worker_id=f"w{number}"))
        for _ in range(400):
            recorder.record(line("x" * 1000, worker_id=f"w{number}"))
    assert recorder.lines_bytes <= 2 * module.ALL_LINES_BYTES
    assert recorder.lines_of_job("j199")
    assert not recorder.after(0, limit=1).is_complete


def test_long_lines_are_cut_and_say_so(recorder):
    recorder.record(line("y" * 20_000))
    (text,) = texts(recorder.after(0, limit=1).entries)
    assert text.endswith("… (4,000 more characters)")


def test_old_jobs_and_events_are_dropped(recorder, monkeypatch):
    monkeypatch.setattr(module, "JOB_LIMIT", 10)
    for number in range(module.EVENT_LIMIT + 5):
        recorder.record(job_event(f"j{number}"))
    assert len(recorder.jobs) == 10
    batch = recorder.after(0, limit=module.EVENT_LIMIT * 2)
    assert len(batch.entries) == module.EVENT_LIMIT
    assert not batch.is_complete


def test_a_job_that_is_retried_for_ever_has_a_bounded_story(recorder):
    for attempt in range(500):
        recorder.record(job_event(attempt=attempt))
    timeline = recorder.jobs["j"].timeline
    assert len(timeline) == module.JOB_EVENT_LIMIT
    assert (timeline[0].event.attempt, timeline[-1].event.attempt) == (0, 499)


def test_events_become_json(recorder):
    recorder.record(job_event(status=JobStatus.FAILED, error=ErrorReport("boom", "it broke", hint="mend it")))
    described = describe(recorder.after(0, limit=1).entries[0])
    assert described["type"] == "job"
    assert described["status"] == "FAILED"
    assert described["error"]["hint"] == "mend it"
    assert described["n"] == 1


async def test_those_who_wait_are_woken_by_an_event_and_by_the_end(recorder):
    assert not await recorder.wait(0, seconds=0.01)
    waiting = asyncio.ensure_future(recorder.wait(0, seconds=60))
    await asyncio.sleep(0)
    recorder.record(line("hello"))
    assert await waiting
    assert await recorder.wait(0, seconds=60)
    waiting = asyncio.ensure_future(recorder.wait(1, seconds=60))
    await asyncio.sleep(0)
    recorder.close()
    assert await waiting
