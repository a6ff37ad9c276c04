"""What a worker tells: the job, its start, steps of its session, what came of them; and that a client passes it on."""

import asyncio
import time

import pytest

from flashkit import Session, cpu_endpoint, orchestrator_endpoint
from flashkit.client import _encode_job
from flashkit.errors import InputError
from flashkit.settings import Settings
from flashkit.telemetry import Op, Recorder
from flashkit.telemetry.propagation import trace_id_of_job
from flashkit.telemetry.spans import HeadSampler, observe, use_recorder
from flashkit.worker.runtime import Runtime
from tests.telemetry.test_spans import PARENT, Kept


@cpu_endpoint()
async def tool(n: int) -> int:
    if n < 0:
        raise ValueError("negative")
    return n


@orchestrator_endpoint()
async def agent(session: Session, how: str = "") -> str:
    await session.step("plan", _spend, session)
    session.spend(tokens=5, cost_usd=0.5)
    await session.gather(session.step("a", _wait), session.step("b", _wait))
    if how == "fails":
        await session.step("broken", _fail)
    await session.effect("mail", _wait)
    return "done"


def _spend(session: Session) -> None:
    session.spend(tokens=3, cost_usd=0.25)


async def _wait() -> None:
    await asyncio.sleep(0)


def _fail() -> None:
    raise RuntimeError("no way")


@pytest.fixture
def sink():
    kept = Kept()
    before = use_recorder(Recorder(kept, sampler=HeadSampler(1e6)))
    yield kept
    use_recorder(before)


async def run(endpoint, tmp_path, *inputs, job_id="job-1"):
    settings = Settings(state_url=f"sqlite:///{tmp_path}/sessions.db", worker_id="w7", base_url="http://127.0.0.1:9/v2")
    runtime = Runtime(endpoint.definition, settings)
    await runtime.start()
    try:
        return [
            await asyncio.create_task(runtime.run({"id": f"{job_id}{number or ''}", "input": data}, emit=_drop))
            for number, data in enumerate(inputs)
        ]
    finally:
        await runtime.stop()


async def _drop(chunk):
    pass


def spans(kept, *ops):
    return [each for each in kept.ended_spans if each.op in ops]


async def test_a_job_says_where_it_ran(sink, tmp_path):
    await run(tool, tmp_path, {"n": 1})
    (job,) = spans(sink, Op.JOB)
    assert (job.trace_id, job.parent_id, job.name) == (trace_id_of_job("job-1"), None, "tool")
    assert job.attributes == {
        "flashkit.endpoint.name": "tool", "flashkit.endpoint.kind": "cpu", "flashkit.worker.id": "w7",
        "flashkit.job.id": "job-1",
    }  # fmt: skip


async def test_a_job_goes_on_in_its_callers_trace_and_the_handler_sees_nothing_of_it(sink, tmp_path):
    (outcome,) = await run(tool, tmp_path, {"n": 1, "_flashkit": {"traceparent": PARENT}})
    assert outcome.error is None
    assert spans(sink, Op.JOB)[0].parent_id == PARENT[36:52]


@pytest.mark.parametrize("envelope", [{"traceparent": 7}, {"traceparent": "x" * 100_000}, 7, None])
async def test_a_traceparent_that_is_none_begins_a_trace(sink, tmp_path, envelope):
    (outcome,) = await run(tool, tmp_path, {"n": 1, "_flashkit": envelope})
    assert outcome.error is None
    assert spans(sink, Op.JOB)[0].trace_id == trace_id_of_job("job-1")


async def test_a_failed_job_says_why(sink, tmp_path):
    await run(tool, tmp_path, {"n": -1}, {"n": "x"})
    first, second = spans(sink, Op.JOB)
    assert (first.error, first.attributes["error.type"]) == ("ValueError: negative", "handler_error")
    assert second.attributes["error.type"] == InputError.code


async def test_the_first_job_that_waited_for_the_start_tells_of_it_and_no_other(sink, tmp_path):
    await run(tool, tmp_path, {"n": 1}, {"n": 2})
    (start,) = spans(sink, Op.COLD_START)
    first, _ = spans(sink, Op.JOB)
    assert start.parent_id == first.span_id
    assert start.start_ns <= start.end_ns <= first.start_ns + 1_000_000_000
    assert [each.name for each in spans(sink, Op.PHASE)] == ["warm-up"]


async def test_observers_hear_of_a_start_once_and_at_once(tmp_path):
    before = use_recorder(Recorder())
    seen = []
    stop = observe(seen.append)
    try:
        await run(tool, tmp_path, {"n": 1}, {"n": 2})
    finally:
        stop()
        use_recorder(before)
    assert [each.op for each in seen] == [Op.COLD_START, Op.JOB, Op.JOB]
    assert "flashkit.phase.warm-up_s" in seen[0].attributes


async def test_a_session_tells_its_steps_its_commits_and_what_was_spent(sink, tmp_path):
    await run(agent, tmp_path, {"session_id": "s-1"})
    (job,) = spans(sink, Op.JOB)
    by_name = {each.name: each for each in spans(sink, Op.STEP, Op.EFFECT)}
    assert list(by_name) == ["plan", "a", "b", "mail"]
    assert {each.parent_id for each in by_name.values()} == {job.span_id}
    assert by_name["mail"].op is Op.EFFECT
    assert job.attributes["flashkit.session.id"] == by_name["a"].attributes["flashkit.session.id"] == "s-1"
    assert by_name["plan"].attributes["flashkit.spent.tokens"] == 3
    assert (job.attributes["flashkit.spent.tokens"], job.attributes["flashkit.spent.cost_usd"]) == (5, 0.5)
    commits = spans(sink, Op.COMMIT)
    assert {each.parent_id for each in commits} >= {by_name["plan"].span_id, by_name["mail"].span_id, job.span_id}
    assert commits[-1].name == "turn"


async def test_a_step_that_fails_says_so_and_a_resumed_turn_tells_only_what_runs(sink, tmp_path):
    await run(agent, tmp_path, {"session_id": "s-1", "how": "fails"})
    broken = next(each for each in spans(sink, Op.STEP) if each.name == "broken")
    assert (broken.error, broken.attributes["error.type"]) == ("RuntimeError: no way", "RuntimeError")
    sink.ended_spans.clear()
    await run(agent, tmp_path, {"session_id": "s-1", "event": None}, job_id="job-2")
    assert [each.name for each in spans(sink, Op.STEP)] == ["broken"]


async def test_steps_are_open_while_they_run(sink, tmp_path):
    await run(agent, tmp_path, {})
    opened = [each.name for each in sink.opened_spans if each.op in (Op.JOB, Op.STEP)]
    assert opened == ["agent", "plan", "a", "b"]


async def test_a_client_passes_on_what_it_is_called_in(sink):
    import orjson

    from flashkit.telemetry import enter_job

    with enter_job(Op.JOB, "a", {}, job_id="j", traceparent=PARENT) as job:
        sent = orjson.loads(_encode_job({"n": 1}, limit_bytes=1_000))["input"]
        kept = orjson.loads(_encode_job({"n": 1, "_flashkit": {"key": "k"}}, limit_bytes=1_000))["input"]
        plain = orjson.loads(_encode_job([1], limit_bytes=1_000))["input"]
    assert sent == {"n": 1, "_flashkit": {"traceparent": job.context.to_header()}}
    assert kept["_flashkit"] == {"key": "k", "traceparent": job.context.to_header()}
    assert plain == [1]
    assert orjson.loads(_encode_job({"n": 1}, limit_bytes=1_000))["input"] == {"n": 1}


async def test_times_are_times_of_day(sink, tmp_path):
    before = time.time_ns()
    await run(tool, tmp_path, {"n": 1})
    (job,) = spans(sink, Op.JOB)
    assert before <= job.start_ns <= job.end_ns <= time.time_ns()
