"""Requests to models: what their spans say, whole and streamed, refused, broken off, and with content on demand."""

import asyncio
import json
from contextlib import aclosing

import pytest

from flashkit import EngineRefusal, ScriptedLLM
from flashkit.settings import Settings
from flashkit.telemetry import Op, Recorder, enter_job
from flashkit.telemetry.spans import HeadSampler, observe, use_recorder
from flashkit.worker.engines.answering import answer_job
from flashkit.worker.engines.engine import EngineRequest, EngineResponse, load_engine
from flashkit.worker.engines.model_spans import open_seen
from flashkit.worker.phases import Phases
from tests.telemetry.test_spans import Kept


@pytest.fixture(params=[False, True], ids=["no content", "content"])
def recorded(request):
    kept = Kept()
    before = use_recorder(Recorder(kept, sampler=HeadSampler(1e6), captures_content=request.param))
    yield kept, request.param
    use_recorder(before)


@pytest.fixture
def sink():
    kept = Kept()
    before = use_recorder(Recorder(kept, sampler=HeadSampler(1e6)))
    yield kept
    use_recorder(before)


async def scripted(*answers, **options):
    return await load_engine(ScriptedLLM(*answers, **options), Settings(), Phases())


def in_job():
    return enter_job(Op.JOB, "writer", {}, job_id="job-1", traceparent=None)


def llm_span(kept):
    (span,) = [each for each in kept.ended_spans if each.op is Op.LLM]
    return span


async def test_a_chat_tells_its_model_its_tokens_and_why_it_ended(recorded):
    kept, has_content = recorded
    llm = (await scripted("Hello there.", model="tiny")).handle()
    with in_job() as job:
        await llm.chat("hi", max_tokens=50, temperature=0.5)
    span = llm_span(kept)
    told = span.attributes
    assert (span.name, span.parent_id, span.error) == ("chat", job.span_id, "")
    assert told["gen_ai.operation.name"] == "chat"
    assert (told["gen_ai.request.max_tokens"], told["gen_ai.request.temperature"]) == (50, 0.5)
    assert (told["gen_ai.response.model"], told["gen_ai.response.finish_reasons"]) == ("tiny", ["stop"])
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (1, 3)
    assert ("gen_ai.input.messages" in told, "gen_ai.output.messages" in told) == (has_content, has_content)
    if has_content:
        assert json.loads(told["gen_ai.input.messages"]) == [{"role": "user", "content": "hi"}]
        assert json.loads(told["gen_ai.output.messages"])[0]["content"] == "Hello there."


async def test_a_stream_tells_when_its_first_token_came(recorded):
    kept, has_content = recorded
    llm = (await scripted("one two three four", tokens_per_second=100)).handle()
    with in_job():
        tokens = [token async for token in llm.stream("count")]
    assert "".join(tokens) == "one two three four"
    span = llm_span(kept)
    told = span.attributes
    assert 0 < told["gen_ai.response.time_to_first_chunk"] <= span.duration_s
    assert told["gen_ai.usage.output_tokens"] >= 4
    assert told["gen_ai.response.finish_reasons"] == ["stop"]
    if has_content:
        assert json.loads(told["gen_ai.output.messages"]) == [{"role": "assistant", "content": "one two three four"}]


async def test_a_long_stream_is_not_kept(sink):
    llm = (await scripted("word " * 5_000)).handle()
    with in_job():
        async for _ in llm.stream("go", max_tokens=5_000):
            pass
    told = llm_span(sink).attributes
    assert told["gen_ai.response.finish_reasons"] == ["length"]
    assert told["gen_ai.usage.output_tokens"] >= 4_000
    assert len(json.dumps(told)) < 2_000


async def test_a_stream_that_nobody_reads_to_its_end_is_closed_and_told(sink):
    llm = (await scripted("word " * 1_000, tokens_per_second=100)).handle()
    with in_job():
        async with aclosing(llm.stream("go")) as tokens:
            await anext(tokens)
    span = llm_span(sink)
    assert span.end_ns
    assert "gen_ai.response.time_to_first_chunk" in span.attributes


async def test_a_refusal_is_an_error(sink):
    llm = (await scripted("Hello.", fail_on={"teapot": 418})).handle()
    with in_job(), pytest.raises(EngineRefusal):
        await llm.chat("teapot")
    span = llm_span(sink)
    assert (span.error, span.attributes["error.type"]) == ("HTTP 418", "418")


async def test_jobs_of_an_endpoint_that_is_its_engine_are_told_too(sink):
    engine = await scripted("Hello.")
    with in_job():
        answer = await answer_job(
            engine, {"openai_route": "/v1/completions", "openai_input": {"prompt": "x"}}, job_id="j"
        )
    assert answer.whole
    assert llm_span(sink).attributes["gen_ai.operation.name"] == "text_completion"


async def test_other_routes_are_no_requests_to_a_model(sink):
    engine = await scripted("Hello.")
    with in_job():
        await engine.handle().request("/v1/models")
    assert [each.op for each in sink.ended_spans] == [Op.JOB]


async def test_observers_get_requests_of_traces_that_are_not_sampled():
    before = use_recorder(Recorder())
    seen = []
    stop = observe(seen.append)
    try:
        llm = (await scripted("Hello there.")).handle()
        await llm.chat("not in a job")
        assert seen == []
        with in_job():
            await llm.chat("hi")
    finally:
        stop()
        use_recorder(before)
    assert [(each.op, each.attributes.get("gen_ai.usage.output_tokens")) for each in seen] == [
        (Op.LLM, 3),
        (Op.JOB, None),
    ]


class Engine:
    """Answers with given pieces, and may break."""

    def __init__(self, *pieces, kind="text/event-stream"):
        self.pieces, self.kind, self.is_closed = pieces, kind, False

    async def open(self, request):
        if isinstance(self.pieces[0], BaseException):
            raise self.pieces[0]
        return EngineResponse(200, self.body(), {"content-type": self.kind})

    async def body(self):
        try:
            for piece in self.pieces:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
                await asyncio.sleep(0)
        finally:
            self.is_closed = True


CHAT = EngineRequest("/v1/chat/completions", {"messages": [], "stream": True})


async def test_an_engine_that_breaks_in_the_middle_is_told(sink):
    with in_job():
        response = await open_seen(Engine(b"data: {}\n\n", RuntimeError("out of memory")), CHAT)
        with pytest.raises(RuntimeError):
            await response.read()
    assert llm_span(sink).error == "RuntimeError: out of memory"


async def test_an_engine_that_does_not_open_is_told(sink):
    with in_job(), pytest.raises(RuntimeError):
        await open_seen(Engine(RuntimeError("dead")), CHAT)
    assert llm_span(sink).error == "RuntimeError: dead"


async def test_an_answer_that_is_closed_before_it_was_read_ends(sink):
    engine = Engine(b"data: {}\n\n")
    with in_job():
        response = await open_seen(engine, CHAT)
        await response.close()
    assert llm_span(sink).end_ns


@pytest.mark.parametrize(
    "pieces",
    [
        (b"\xff\xfe",), (b"data: {broken\n\n", b"data: [1]\n\n"), (b"data: 7\n\n",),
        (b'data: {"usage": "none", "choices": [1, {"finish_reason": 3, "delta": 7}], "model": 4}\n\n',),
    ],
)  # fmt: skip
async def test_nonsense_in_a_stream_breaks_nothing(recorded, pieces):
    with in_job():
        response = await open_seen(Engine(*pieces), CHAT)
        assert await response.read() == b"".join(pieces)
    assert llm_span(recorded[0]).error == ""


async def test_an_event_that_comes_in_pieces_is_read_whole(sink):
    text = (
        b'data: {"choices": [{"finish_reason": "length"}], "usage": {"prompt_tokens": 5, "completion_tokens": 6}}\n\n'
    )
    with in_job():
        response = await open_seen(Engine(*(text[i : i + 7] for i in range(0, len(text), 7))), CHAT)
        await response.read()
    told = llm_span(sink).attributes
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (5, 6)
