"""Jobs answered by an engine, in the worker's process: input shapes, whole answers, streams, deadlines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from flashkit import EngineDied, EngineRefusal, InputError, ScriptedLLM
from flashkit.settings import Settings
from flashkit.worker.engines.answering import answer_job, read_body
from flashkit.worker.engines.engine import EngineRequest, EngineResponse, load_engine
from flashkit.worker.engines.inputs import read_request
from flashkit.worker.phases import Phases

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


class Fixed:
    """An engine that gives fixed bytes, and knows what became of its answer."""

    def __init__(self, *chunks: bytes, status: int = 200, kind: str = "application/json", then=None) -> None:
        self.chunks = chunks
        self.status = status
        self.kind = kind
        self.then = then
        self.asked: list[EngineRequest] = []
        self.closed = 0

    async def open(self, request: EngineRequest) -> EngineResponse:
        self.asked.append(request)
        return EngineResponse(self.status, self.body(), {"content-type": self.kind})

    async def body(self) -> AsyncGenerator[bytes, None]:
        try:
            for chunk in self.chunks:
                yield chunk
                await asyncio.sleep(0)
            if self.then is not None:
                await self.then()
        finally:
            self.closed += 1


async def scripted(*answers, **options):
    return await load_engine(ScriptedLLM(*answers, **options), Settings(), Phases())


async def whole(engine, data, **options):
    answer = await answer_job(engine, data, job_id="job-1", **options)
    assert answer.pieces is None
    return json.loads(answer.whole)


async def pieces(engine, data, **options) -> list[str]:
    answer = await answer_job(engine, data, job_id="job-1", **options)
    assert answer.whole is None
    async with aclosing(answer.pieces) as found:
        return [json.loads(piece) async for piece in found]


def events_of(texts: list[str]) -> list[dict]:
    events = "".join(texts).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def soon(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


@pytest.mark.parametrize(
    ("data", "path", "method", "body"),
    [
        ({"openai_route": "/v1/models"}, "/v1/models", "GET", None),
        ({"openai_route": "/v1/x", "openai_input": {}}, "/v1/x", "POST", {}),
        ({"openai_input": {"messages": HI}}, CHAT, "POST", {"messages": HI}),
        ({"openai_input": {"prompt": "a"}}, COMPLETIONS, "POST", {"prompt": "a"}),
        ({"openai_route": "/v1/models", "openai_input": None}, "/v1/models", "GET", None),
        ({"route": "/tokenize", "body": {"prompt": "a"}}, "/tokenize", "POST", {"prompt": "a"}),
        ({"route": "/health"}, "/health", "GET", None),
        ({"route": "/v1/files/1", "method": "delete"}, "/v1/files/1", "DELETE", None),
        ({"messages": HI, "temperature": 0}, CHAT, "POST", {"messages": HI, "temperature": 0}),
        ({"messages": HI, "stream": True}, CHAT, "POST", {"messages": HI, "stream": True}),
        ({"input": "a"}, "/v1/responses", "POST", {"input": "a"}),
        ({"prompt": "a"}, COMPLETIONS, "POST", {"prompt": "a", "max_tokens": 100}),
        ({"prompt": "a", "max_tokens": 5}, COMPLETIONS, "POST", {"prompt": "a", "max_tokens": 5}),
        (
            {"prompt": "a", "sampling_params": {"max_tokens": 5, "top_k": 3}, "max_batch_size": 9, "stream": False},
            COMPLETIONS, "POST", {"prompt": "a", "max_tokens": 5, "top_k": 3, "stream": False},
        ),
        ({"messages": HI, "sampling_params": {"n": 2}, "n": 1}, CHAT, "POST", {"messages": HI, "n": 1}),
        ({"messages": HI, "sampling_params": None}, CHAT, "POST", {"messages": HI}),
        ({"prompt": "hi", "apply_chat_template": True}, CHAT, "POST", {"messages": HI}),
        (
            {"prompt": "a", "apply_chat_template": False, "use_openai_format": True},
            COMPLETIONS, "POST", {"prompt": "a", "max_tokens": 100},
        ),
    ],
)  # fmt: skip
def test_every_shape_of_input_is_one_request(data, path, method, body):
    request = read_request(data, job_id="job-1")
    assert (request.path, request.method, request.body, request.id) == (path, method, body, "job-1")


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (None, "the input is null, not an object"),
        ([1], "the input is a list"),
        ("hi", "the input is a text"),
        (3, "the input is a number"),
        (True, "the input is a truth value"),
        ({}, "the input has nothing and names no request"),
        ({"question": "hi"}, "only 'question'"),
        ({"openai_route": "v1/models"}, "`openai_route` is 'v1/models', not a path"),
        ({"openai_route": 3, "openai_input": {}}, "`openai_route` is 3"),
        ({"openai_route": "/v1/x", "openai_input": [1]}, "`openai_input` is a list"),
        ({"route": None}, "`route` is None"),
        ({"route": "/x", "method": "BREW"}, "`method` is 'BREW'"),
        ({"prompt": "a", "sampling_params": "hot"}, "`sampling_params` is a text"),
    ],
)
def test_anything_else_is_refused_with_what_would_be_right(data, part):
    with pytest.raises(InputError) as caught:
        read_request(data)
    assert part in caught.value.report.message
    assert caught.value.report.hint


def test_an_engine_may_have_shorthands_of_its_own():
    request = read_request({"input": ["a"]}, shorthands={"input": "/v1/embeddings"})
    assert (request.path, request.body) == ("/v1/embeddings", {"input": ["a"]})
    with pytest.raises(InputError):
        read_request({"prompt": "a"}, shorthands={"input": "/v1/embeddings"})


async def test_a_whole_answer_is_the_engines_own_json():
    engine = Fixed(b'{"a": 1', b', "b": [2.50]}')
    answer = await answer_job(engine, {"route": "/x"}, job_id="job-1")
    assert answer.whole == b'{"a": 1, "b": [2.50]}'
    assert engine.closed == 1


@pytest.mark.parametrize(
    ("body", "value"),
    [(b"", None), (b"# metrics\n", "# metrics\n"), (b"\xff\xfb", "//s="), (b"NaN", "NaN"), (b'"text"', "text")],
)
async def test_a_body_that_is_no_json_becomes_json(body, value):
    assert read_body(body) == value
    assert await whole(Fixed(body, kind="text/plain"), {"route": "/metrics"}) == value


async def test_a_refusal_keeps_status_and_body():
    body = {"error": {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}}
    engine = Fixed(json.dumps(body).encode(), status=400)
    with pytest.raises(EngineRefusal, match="HTTP 400: too long") as caught:
        await answer_job(engine, {"messages": HI, "stream": True}, job_id="job-1")
    assert caught.value.report.details == {"status": 400, "body": body}
    assert engine.closed == 1


async def test_a_refusal_that_comes_as_a_stream_is_read_as_one():
    engine = Fixed(b'{"error": "no"}', status=503, kind="text/event-stream")
    with pytest.raises(EngineRefusal, match="HTTP 503: no"):
        await answer_job(engine, {"messages": HI, "stream": True}, job_id="job-1")


async def test_a_redirect_is_no_answer():
    with pytest.raises(EngineRefusal, match="HTTP 307"):
        await answer_job(Fixed(b"", status=307), {"route": "/x"}, job_id="job-1")


async def test_a_stream_is_pieces_of_whole_events():
    engine = await scripted("Grüße, 世界! 🎌 " * 20)
    found = await pieces(engine, {"messages": HI, "stream": True})
    assert all(piece.endswith("\n\n") for piece in found)
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events_of(found))
    assert text == "Grüße, 世界! 🎌 " * 20


async def test_characters_and_events_cut_by_the_engine_arrive_whole():
    body = ('data: {"text":"日本語"}\n\n' * 30 + "data: [DONE]\n\n").encode()
    engine = Fixed(*(body[start : start + 7] for start in range(0, len(body), 7)), kind="text/event-stream")
    found = await pieces(engine, {"messages": HI, "stream": True})
    assert "".join(found).encode() == body
    assert all(piece.endswith("\n\n") for piece in found)


async def test_closing_the_pieces_aborts_the_request():
    engine = await scripted("word " * 1000, tokens_per_second=100)
    answer = await answer_job(engine, {"messages": HI, "stream": True}, job_id="job-1")
    await anext(answer.pieces)
    assert engine.is_busy
    await answer.pieces.aclose()
    assert not engine.is_busy
    assert (await whole(engine, {"route": "/stats"}))["aborted"] == 1


async def test_cancelling_the_job_aborts_a_whole_answer():
    engine = await scripted("word", first_token_seconds=60)
    task = asyncio.create_task(answer_job(engine, {"messages": HI}, job_id="job-1", deadline=soon(90)))
    while not engine.is_busy:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert (await whole(engine, {"route": "/stats"}))["aborted"] == 1


async def test_the_death_of_the_engine_comes_after_what_it_made():
    async def die():
        raise EngineDied("the engine died")

    engine = Fixed(b"data: 1\n\n", kind="text/event-stream", then=die)
    answer = await answer_job(engine, {"messages": HI, "stream": True}, job_id="job-1")
    assert json.loads(await anext(answer.pieces)) == "data: 1\n\n"
    with pytest.raises(EngineDied):
        await anext(answer.pieces)


async def test_a_stream_ends_at_the_deadline_with_what_there_is():
    engine = await scripted("word " * 1000, tokens_per_second=100)
    found = events_of(await pieces(engine, {"messages": HI, "stream": True}, deadline=soon(0.2)))
    *made, last = found
    assert len(made) > 3
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}]
    assert last["flashkit"] == {"ended_by": "deadline"}
    assert {key: last[key] for key in ("id", "object", "model")} == {
        key: made[0][key] for key in ("id", "object", "model")
    }
    assert not engine.is_busy
    assert (await whole(engine, {"route": "/stats"}))["aborted"] == 1


async def test_every_choice_that_still_runs_is_ended():
    engine = await scripted("word " * 1000, tokens_per_second=100)
    data = {"prompt": "a", "n": 2, "max_tokens": 900, "stream": True}
    last = events_of(await pieces(engine, data, deadline=soon(0.1)))[-1]
    assert [(choice["index"], choice["text"], choice["finish_reason"]) for choice in last["choices"]] == [
        (0, "", "length"), (1, "", "length"),
    ]  # fmt: skip
    assert last["object"] == "text_completion"


async def test_a_choice_that_has_ended_is_not_ended_again():
    async def hang():
        await asyncio.sleep(60)

    event = {"id": "c", "object": "x", "created": 1, "model": "m", "choices": [{"index": 0, "finish_reason": "stop"}]}
    engine = Fixed(f"data: {json.dumps(event)}\n\n".encode(), kind="text/event-stream", then=hang)
    found = events_of(await pieces(engine, {"messages": HI, "n": 2, "stream": True}, deadline=soon(0.05)))
    assert [choice["index"] for choice in found[-1]["choices"]] == [1]
    engine = Fixed(f"data: {json.dumps(event)}\n\n".encode(), kind="text/event-stream", then=hang)
    assert events_of(await pieces(engine, {"messages": HI, "stream": True}, deadline=soon(0.05))) == [event]
    assert engine.closed == 1


async def test_a_stream_that_has_not_begun_by_the_deadline_is_an_empty_one():
    class Queueing(Fixed):
        async def open(self, request):
            await asyncio.sleep(60)

    found = events_of(await pieces(Queueing(), {"messages": HI, "stream": True, "model": "m"}, deadline=soon(0.05)))
    assert [(event["model"], event["choices"][0]["finish_reason"]) for event in found] == [("m", "length")]


async def test_a_stream_of_another_kind_fails_at_the_deadline():
    async def hang():
        await asyncio.sleep(60)

    engine = Fixed(b"event: response.created\ndata: {}\n\n", kind="text/event-stream", then=hang)
    answer = await answer_job(engine, {"input": "a", "stream": True}, job_id="job-1", deadline=soon(0.05))
    assert json.loads(await anext(answer.pieces)).startswith("event: response.created")
    with pytest.raises(EngineRefusal, match="time was up") as caught:
        await anext(answer.pieces)
    assert caught.value.report.details["status"] == 504
    assert engine.closed == 1


async def test_a_whole_answer_is_given_as_far_as_it_got_by_the_deadline():
    engine = await scripted("word " * 1000, tokens_per_second=100)
    answer = await whole(engine, {"messages": HI}, deadline=soon(0.2))
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["choices"][0]["message"]["content"].startswith("word word")
    assert 1 < answer["usage"]["completion_tokens"] < 1000
    assert answer["flashkit"] == {"ended_by": "deadline"}


async def test_an_engine_that_cannot_end_an_answer_early_is_aborted_and_says_what_to_do():
    class Slow(Fixed):
        async def open(self, request):
            try:
                await asyncio.sleep(60)
            finally:
                self.closed += 1

    engine = Slow()
    with pytest.raises(EngineRefusal) as caught:
        await answer_job(engine, {"messages": HI}, job_id="job-1", deadline=soon(0.05))
    assert engine.closed == 1
    assert caught.value.report.details["status"] == 504
    assert "ask for a stream" in caught.value.report.details["body"]["error"]["message"]


async def test_an_answer_in_time_is_not_marked():
    engine = await scripted("word")
    assert "flashkit" not in await whole(engine, {"messages": HI}, deadline=soon(60))
    assert "deadline" not in "".join(await pieces(engine, {"messages": HI, "stream": True}, deadline=soon(60)))


async def test_one_bad_request_fails_alone():
    engine = await scripted("word")
    good = [whole(engine, {"messages": HI}, deadline=soon(60)) for _ in range(8)]
    bad = whole(engine, {"messages": HI, "temperature": -1}, deadline=soon(60))
    *answers, refusal = await asyncio.gather(*good, bad, return_exceptions=True)
    assert {answer["choices"][0]["message"]["content"] for answer in answers} == {"word"}
    assert isinstance(refusal, EngineRefusal)
