"""`engine: LLM`: what a handler can ask a language model, whichever engine serves it."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import pytest
from pydantic import BaseModel

from flashkit import LLM, EngineDied, EngineError, EngineRefusal, InputError, ScriptedLLM, gpu_endpoint
from flashkit.settings import Settings
from flashkit.testing import LocalWorker
from flashkit.worker.engines.engine import EngineRequest, EngineResponse, load_engine
from flashkit.worker.engines.llm import Completion, Token, ToolCall, Usage
from flashkit.worker.phases import Phases


async def scripted(*answers, **options) -> LLM:
    engine = await load_engine(ScriptedLLM(*answers, **options), Settings(), Phases())
    return engine.handle()


class Streaming:
    """An engine that answers with given bytes, as a stream or whole."""

    def __init__(self, *chunks: bytes, kind: str = "text/event-stream", status: int = 200) -> None:
        self.chunks = chunks
        self.kind = kind
        self.status = status
        self.closed = False
        self.asked: list[EngineRequest] = []

    async def open(self, request: EngineRequest) -> EngineResponse:
        self.asked.append(request)
        return EngineResponse(self.status, self.body(), {"content-type": self.kind})

    async def body(self) -> AsyncGenerator[bytes, None]:
        try:
            for chunk in self.chunks:
                yield chunk
                await asyncio.sleep(0)
        finally:
            self.closed = True


def event(**chunk) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


def delta(finish_reason=None, index=0, **parts) -> bytes:
    return event(choices=[{"index": index, "delta": parts, "finish_reason": finish_reason}])


async def test_a_chat_is_a_text_with_its_reason_and_its_tokens():
    engine = await scripted("Hello there.")
    answer = await engine.chat([{"role": "user", "content": "hi"}], temperature=0)
    assert (answer.text, answer.finish_reason, answer.tool_calls) == ("Hello there.", "stop", ())
    assert answer.usage == Usage(prompt_tokens=1, completion_tokens=3)
    assert answer.raw["object"] == "chat.completion"
    assert (await engine.chat("hi", max_tokens=1)).finish_reason == "length"


async def test_a_completion_goes_on_with_a_prompt():
    answer = await (await scripted({"^Once$": "upon a time"})).complete("Once", max_tokens=2)
    assert (answer.text, answer.finish_reason, answer.usage) == ("upon a", "length", Usage(1, 2))


async def test_tool_calls_can_be_read():
    engine = await scripted({"tool_calls": [{"name": "f", "arguments": {"city": "Oslo"}}, {"name": "g"}]})
    first, second = (await engine.chat("hi")).tool_calls
    assert (first.name, first.parse(), second.parse()) == ("f", {"city": "Oslo"}, {})
    assert first.id != second.id


@pytest.mark.parametrize("arguments", ["{", "[1]"])
def test_arguments_that_are_no_object_are_an_error_with_the_text(arguments):
    with pytest.raises(EngineError, match="no JSON object") as caught:
        ToolCall("1", "f", arguments).parse()
    assert repr(arguments) in str(caught.value)


class Place(BaseModel):
    city: str
    people: int = 0


@dataclass
class Point:
    x: int


async def test_a_schema_gives_a_value_of_it_and_tells_the_engine():
    asked = []

    def answer(body):
        asked.append(body["response_format"])
        return {"json": {"city": "Oslo", "people": 709}}

    engine = await scripted(answer)
    assert await engine.chat("where?", schema=Place) == Place(city="Oslo", people=709)
    assert asked[0]["type"] == "json_schema"
    assert asked[0]["json_schema"]["name"] == "Place"
    assert asked[0]["json_schema"]["schema"]["properties"]["people"]["type"] == "integer"
    assert await (await scripted('{"x": 3}')).chat("where?", schema=Point) == Point(3)
    assert await (await scripted("[1, 2]")).chat("which?", schema=list[int]) == [1, 2]


async def test_an_answer_that_is_not_of_the_schema_says_what_it_was():
    engine = await scripted('{"people": "many"}')
    with pytest.raises(EngineError, match=r"no Place: .*many") as caught:
        await engine.chat("where?", schema=Place)
    assert [error["loc"] for error in caught.value.report.details["errors"]] == [("city",), ("people",)]
    engine = await scripted('{"city": "Oslo"}')
    with pytest.raises(EngineError, match="cut off: raise max_tokens"):
        await engine.chat("where?", schema=Place, max_tokens=3)


async def test_a_stream_is_text_whose_last_piece_tells_how_it_ended():
    engine = await scripted("Grüße, 世界!", tokens_per_second=200)
    tokens = [token async for token in engine.stream("hi")]
    assert [str(token) for token in tokens[:3]] == ["Grüße", ",", " 世界"]
    assert "".join(tokens) == "Grüße, 世界!"
    assert all(isinstance(token, str) for token in tokens)
    assert (tokens[-1].finish_reason, tokens[-1].usage) == ("stop", Usage(1, 4))
    assert {token.finish_reason for token in tokens[:-1]} == {None}


async def test_a_prompt_can_be_streamed_as_well():
    engine = await scripted("a b c")
    assert "".join([token async for token in engine.stream(prompt="hi", max_tokens=2)]) == "a b"


@pytest.mark.parametrize("arguments", [{}, {"messages": "a", "prompt": "b"}])
async def test_a_stream_takes_one_of_both(arguments):
    with pytest.raises(InputError, match="either messages or a prompt"):
        [token async for token in LLM(Streaming()).stream(**arguments)]


async def test_a_handler_that_is_busy_gets_all_that_was_made_meanwhile():
    engine = await scripted("word " * 100)
    found = []
    async for token in engine.stream("hi"):
        found.append(token)
        await asyncio.sleep(0.05)
    assert len(found) < 10
    assert "".join(found) == "word " * 100


async def test_tool_calls_and_reasoning_are_in_the_deltas():
    engine = LLM(
        Streaming(
            delta(role="assistant", content=""),
            delta(reasoning_content="hm"),
            delta(tool_calls=[{"index": 0, "function": {"name": "f"}}]),
            delta(index=1, content="another choice"),
            delta("tool_calls"),
            b"data: [DONE]\n\n",
        )
    )
    tokens = [token async for token in engine.stream("hi")]
    deltas = [each for token in tokens for each in token.deltas]
    assert deltas == [{"reasoning_content": "hm"}, {"tool_calls": [{"index": 0, "function": {"name": "f"}}]}]
    assert ("".join(tokens), tokens[-1].finish_reason) == ("", "tool_calls")


async def test_text_beside_the_finish_reason_is_not_lost_and_odd_lines_are_passed_over():
    body = (
        b": ping\r\n\r\n"
        + delta(content="a\u2028b")
        + b"event: x\ndata: \n\n"
        + delta("stop", content="c")
        + event(usage=None)
    )
    engine = LLM(Streaming(*[body[start : start + 5] for start in range(0, len(body), 5)]))
    tokens = [token async for token in engine.stream("hi")]
    assert ("".join(tokens), tokens[-1], tokens[-1].finish_reason) == ("a\u2028bc", "c", "stop")


@pytest.mark.parametrize("leave", ["break", "close", "cancel"])
async def test_leaving_the_loop_aborts_the_request(leave):
    engine = await scripted("word " * 1000, tokens_per_second=200)

    async def read():
        if leave == "close":
            async with aclosing(engine.stream("hi")) as tokens:
                async for _ in tokens:
                    return
        async for _ in engine.stream("hi"):
            if leave == "break":
                break

    task = asyncio.create_task(read())
    if leave == "cancel":
        await asyncio.sleep(0.05)
        task.cancel()
    await asyncio.wait([task])
    gc.collect()
    for _ in range(20):  # an iterator that is dropped is closed by the loop
        await asyncio.sleep(0)
    stats = await engine.request("/stats")
    assert (stats["running"], stats["aborted"]) == (0, 1)


async def test_any_route_can_be_asked():
    engine = await scripted("x", model="tiny")
    assert (await engine.request("/v1/models"))["data"][0]["id"] == "tiny"
    assert await engine.request("/health") is None
    with pytest.raises(EngineRefusal, match="HTTP 404"):
        await engine.request("/v1/none", {})
    with pytest.raises(InputError, match="is a stream"):
        await engine.request("/v1/chat/completions", {"messages": [{"role": "user"}], "stream": True})
    fixed = Streaming(b"1", kind="application/json")
    await LLM(fixed).request("/x", {"a": 1}, method="PUT")
    assert fixed.asked[0].method == "PUT"


@pytest.mark.parametrize("call", ["chat", "complete", "stream"])
async def test_refusals_and_deaths_are_exceptions(call):
    engine = await scripted("x", fail_on={"bad": 400, "poison": "die"})

    async def ask(text):
        if call == "stream":
            return [token async for token in engine.stream(text)]
        return await getattr(engine, call)(text)

    with pytest.raises(EngineRefusal) as caught:
        await ask("bad")
    assert caught.value.report.details["status"] == 400
    with pytest.raises(EngineDied):
        await ask("poison")


async def test_a_failure_in_the_middle_of_a_stream_is_raised_with_the_engines_words():
    error = {"message": "out of memory", "type": "InternalServerError", "code": 500}
    with pytest.raises(EngineRefusal, match="HTTP 500: out of memory"):
        [token async for token in LLM(Streaming(delta(content="a"), event(error=error))).stream("hi")]
    with pytest.raises(EngineRefusal, match="HTTP 500: oh"):
        [token async for token in LLM(Streaming(event(error="oh"))).stream("hi")]


async def test_a_stream_that_breaks_off_is_an_error():
    engine = Streaming(delta(content="a"))
    with pytest.raises(EngineError, match="ended before its answer did"):
        [token async for token in LLM(engine).stream("hi")]
    assert engine.closed
    with pytest.raises(EngineError, match="not JSON"):
        [token async for token in LLM(Streaming(b"data: {\n\n")).stream("hi")]


async def test_an_engine_that_does_not_stream_or_answer_is_said():
    whole = Streaming(b"{}", kind="application/json")
    with pytest.raises(EngineError, match="without a stream"):
        [token async for token in LLM(whole).stream("hi")]
    with pytest.raises(EngineError, match="no choices"):
        await LLM(whole).chat("hi")


async def test_requests_of_one_job_can_be_told_apart():
    engine = Streaming(b'{"choices": [{"message": {}}]}', kind="application/json")
    await LLM(engine).chat("a")
    await LLM(engine).chat("b")
    handle = LLM(engine)
    await asyncio.gather(handle.chat("c"), handle.chat("d"))
    assert len({request.id for request in engine.asked[2:]}) == 2


@gpu_endpoint(name="tell", gpu="A100", engine=ScriptedLLM({"it": "So it is."}))
async def tell(topic: str, engine: LLM) -> Completion:
    return await engine.chat(topic)


@gpu_endpoint(name="spell", gpu="A100", engine=ScriptedLLM("a b c"))
async def spell(engine: LLM):
    async for token in engine.stream("hi"):
        yield token


async def test_answers_and_tokens_can_be_a_handlers_output():
    async with LocalWorker(tell) as worker:
        output = (await worker.run({"topic": "it"})).result()
        refused = await worker.run({"topic": "what?"})
    assert (output["text"], output["usage"]) == ("So it is.", {"prompt_tokens": 1, "completion_tokens": 4})
    assert refused.error.code == "engine_refusal"
    async with LocalWorker(spell) as worker:
        result = await worker.run({})
    assert "".join(result.chunks) == "a b c"


def test_a_token_is_a_text_with_facts():
    token = Token("a", finish_reason="stop", usage=Usage(1, 2), deltas=[{"content": "a"}])
    assert (token + "b", token.deltas, Token().usage) == ("ab", ({"content": "a"},), None)
