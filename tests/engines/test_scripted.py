"""The scripted model behind its routes, asked as a worker asks any engine."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest

from flashkit import DefinitionError, EngineDied, EngineRefusal, ScriptedLLM
from flashkit.errors import ConfigurationError
from flashkit.settings import Settings
from flashkit.spec import EngineSpec
from flashkit.worker.engines.engine import EngineRequest, load_engine
from flashkit.worker.phases import Phases

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


async def load(*answers, **options):
    return await load_engine(ScriptedLLM(*answers, **options), Settings(), Phases())


def question(text: str = "hi", **more):
    return {"messages": [{"role": "user", "content": text}], **more}


def form(schema):
    return {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}


async def ask(engine, body, path=CHAT, *, request_id="job-1"):
    response = await engine.open(EngineRequest(path, body, id=request_id))
    data = await response.read()
    await response.close()
    return response.status, json.loads(data) if data and not response.is_stream else data.decode()


async def say(engine, text="hi", **more) -> str:
    status, answer = await ask(engine, question(text, **more))
    assert status == 200, answer
    return answer["choices"][0]["message"]["content"]


async def refusal(engine, body, path=CHAT):
    status, answer = await ask(engine, body, path)
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["code"] == status
    return status, answer["error"]["message"]


async def chunks(engine, body, path=CHAT):
    response = await engine.open(EngineRequest(path, {**body, "stream": True}, id="job-1"))
    assert response.is_stream
    events = (await response.read()).decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


async def stats(engine):
    return (await ask_get(engine, "/stats"))[1]


async def ask_get(engine, path):
    response = await engine.open(EngineRequest(path, method="GET"))
    data = await response.read()
    return response.status, json.loads(data) if data else None


async def test_one_text_answers_everything():
    engine = await load("Hello there.")
    assert [await say(engine), await say(engine, "again")] == ["Hello there.", "Hello there."]


async def test_one_object_answers_everything_too():
    engine = await load({"text": "Hello.", "finish_reason": "length"})
    status, answer = await ask(engine, question())
    assert (status, answer["choices"][0]["finish_reason"]) == (200, "length")


async def test_a_list_is_given_in_order_and_then_says_that_it_is_used_up():
    engine = await load(["one", "two"])
    assert [await say(engine), await say(engine)] == ["one", "two"]
    assert await refusal(engine, question("three?")) == (
        500, "the script's 2 answers have all been given; the request is 'three?'",
    )  # fmt: skip


async def test_after_the_list_comes_what_otherwise_says():
    engine = await load(["one"], otherwise="more")
    assert [await say(engine) for _ in range(3)] == ["one", "more", "more"]


async def test_patterns_look_at_the_last_message_in_their_order():
    engine = await load({"(?i)weather": "Rain.", "weather|time": "Noon."}, otherwise="What?")
    body = {
        "messages": [
            {"role": "system", "content": "Talk of the weather."},
            {"role": "user", "content": [{"type": "text", "text": "What time is it?"}]},
        ]
    }
    assert (await ask(engine, body))[1]["choices"][0]["message"]["content"] == "Noon."
    assert await say(engine, "The Weather?") == "Rain."
    assert await say(engine, "Who?") == "What?"


async def test_no_pattern_is_an_error_that_shows_the_request():
    engine = await load({"weather": "Rain."})
    assert await refusal(engine, question("Who?")) == (500, "no pattern of the script is found in 'Who?'")


async def test_a_function_makes_answers_of_the_request():
    async def slowly(body):
        await asyncio.sleep(0)
        return {"json": {"asked": body["messages"][-1]["content"]}}

    assert json.loads(await say(await load(slowly), "hi")) == {"asked": "hi"}
    assert await say(await load(lambda body: body["messages"][-1]["content"].upper()), "hi") == "HI"


async def test_a_function_that_fails_or_returns_nonsense_is_an_error_of_the_request(caplog):
    def fail(body):
        raise ValueError("no idea")

    status, message = await refusal(await load(fail), question())
    assert (status, message) == (500, "the script's function fail failed: ValueError: no idea")
    assert "Traceback" in caplog.text
    status, message = await refusal(await load(lambda body: 3), question())
    assert (status, "returned no answer" in message) == (500, True)


async def test_a_function_that_did_not_come_along_is_said():
    spec = ScriptedLLM(lambda body: "x")
    travelled = EngineSpec.from_dict({"type": spec.type, "options": dict(spec.options)})
    with pytest.raises(ConfigurationError, match="function"):
        await load_engine(travelled, Settings(), Phases())


async def test_usage_counts_words_and_punctuation_marks():
    engine = await load("Yes, it is.")
    _, answer = await ask(engine, question("Is it so?"))
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}


async def test_the_same_request_gets_the_same_answer_byte_for_byte():
    first, second = await load("Hello."), await load("Hello.")
    assert await ask(first, question()) == await ask(second, question())


async def test_max_tokens_cuts_the_answer_and_says_so():
    engine = await load("one two three four")
    _, answer = await ask(engine, question(max_tokens=2))
    assert answer["choices"][0]["message"]["content"] == "one two"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert (await ask(engine, question(max_completion_tokens=4)))[1]["choices"][0]["finish_reason"] == "stop"


async def test_stop_texts_end_the_answer_before_them():
    engine = await load("one two three")
    assert await say(engine, stop=" three") == "one two"
    assert await say(engine, stop=["three", "two"]) == "one "


async def test_a_completion_goes_on_with_a_prompt():
    engine = await load({"^Once": "upon a time"})
    status, answer = await ask(engine, {"prompt": "Once", "max_tokens": 5}, COMPLETIONS)
    assert (status, answer["object"]) == (200, "text_completion")
    assert answer["choices"] == [{"index": 0, "text": "upon a time", "logprobs": None, "finish_reason": "stop"}]


async def test_a_stream_has_a_chunk_for_each_token_and_the_usage_where_asked():
    engine = await load("Hello there.")
    found = await chunks(engine, question(stream_options={"include_usage": True}))
    assert [chunk["choices"][0]["delta"] for chunk in found[:-1]] == [
        {"role": "assistant", "content": ""}, {"content": "Hello"}, {"content": " there"}, {"content": "."}, {},
    ]  # fmt: skip
    assert found[-2]["choices"][0]["finish_reason"] == "stop"
    assert (found[-1]["choices"], found[-1]["usage"]["completion_tokens"]) == ([], 3)
    assert {chunk["object"] for chunk in found} == {"chat.completion.chunk"}


async def test_a_streamed_completion_and_several_choices():
    engine = await load("a b")
    found = await chunks(engine, {"prompt": "x", "n": 2}, COMPLETIONS)
    texts = {
        index: "".join(c["text"] for chunk in found for c in chunk["choices"] if c["index"] == index)
        for index in (0, 1)
    }
    assert texts == {0: "a b", 1: "a b"}


async def test_tool_calls_come_whole_and_in_a_stream():
    call = {"tool_calls": [{"name": "forecast", "arguments": {"city": "Oslo"}}]}
    engine = await load({"weather": call})
    _, answer = await ask(engine, question("weather?"))
    message = answer["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"][0]["function"] == {"name": "forecast", "arguments": '{"city": "Oslo"}'}
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    found = await chunks(engine, question("weather?"))
    deltas = [chunk["choices"][0]["delta"] for chunk in found]
    assert deltas[1]["tool_calls"][0]["index"] == 0
    assert deltas[1]["tool_calls"][0]["function"]["name"] == "forecast"


async def test_structured_output_is_the_scripts_json():
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    engine = await load([{"json": {"city": "Oslo"}}, "Oslo"])
    assert json.loads(await say(engine, response_format=form(schema))) == {"city": "Oslo"}
    status, message = await refusal(engine, question(response_format=form(schema)))
    assert (status, message) == (500, "the request wants JSON, and the script's answer is none: 'Oslo'")


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        (question(model="huge"), 404, "The model `huge` does not exist."),
        (question(temperature=-1), 400, "temperature must be non-negative"),
        (question(top_p=2), 400, "top_p must be in (0, 1]"),
        (question(max_tokens=0), 400, "max_tokens must be at least 1"),
        (question(n=1.5), 400, "n must be from 1"),
        (question(temperature="warm"), 400, "got 'warm'"),
        ({"messages": []}, 400, "at least one message"),
        ({"messages": ["hi"]}, 400, "messages[0] has no role"),
        ({}, 400, "messages must be"),
        ([], 400, "not a JSON object"),
        (question("one two three four five six seven"), 400, "maximum context length is 6 tokens"),
        (question("one two", max_tokens=5), 400, "asks for 5 more"),
        (question(response_format=form({"type": "shape"})), 400, "schema"),
        (question(response_format={"type": "json_schema"}), 400, "schema"),
    ],
)  # fmt: skip
async def test_bad_requests_are_refused_in_openais_shape(body, status, part):
    engine = await load("Hello.", max_model_len=6)
    found, message = await refusal(engine, body)
    assert (found, part in message) == (status, True), message
    assert await say(engine) == "Hello."


async def test_a_prompt_must_be_a_text():
    assert (await refusal(await load("x"), {"prompt": [1, 2]}, COMPLETIONS))[0] == 400


async def test_an_answer_is_cut_where_the_context_ends():
    engine = await load("a b c d e", max_model_len=4)
    _, answer = await ask(engine, question("one two"))
    assert answer["choices"][0]["message"]["content"] == "a b"
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_requests_fail_on_demand():
    engine = await load([{"status": 429, "message": "slow down"}, "fine"], fail_on={"boom": 503})
    assert await refusal(engine, question("boom")) == (503, "the script fails requests in which 'boom' is found")
    assert await refusal(engine, question()) == (429, "slow down")
    assert await say(engine) == "fine"


async def test_an_engine_that_dies_takes_its_running_requests_along():
    engine = await load("a b c", fail_on={"poison": "die"}, first_token_seconds=60)
    running = asyncio.create_task(ask(engine, question()))
    await asyncio.sleep(0)
    with pytest.raises(EngineDied):
        await ask(engine, question("poison"))
    with pytest.raises(EngineDied):
        await running
    for work in (engine.check(), ask(engine, question())):
        with pytest.raises(EngineDied):
            await work
    await engine.close()


async def test_models_health_and_unknown_routes():
    engine = await load("x", model="tiny", max_model_len=99)
    status, listed = await ask_get(engine, "/v1/models")
    assert (status, [model["id"] for model in listed["data"]]) == (200, ["tiny"])
    assert (await ask_get(engine, "/v1/models/tiny"))[1]["max_model_len"] == 99
    assert await ask_get(engine, "/health") == (200, None)
    assert (await ask_get(engine, "/v1/nothing"))[0] == 404
    assert (await ask_get(engine, CHAT))[0] == 405


async def test_a_closed_stream_stops_at_once_and_is_counted():
    engine = await load("word " * 1000, tokens_per_second=1000)
    response = await engine.open(EngineRequest(CHAT, question(stream=True), id="job"))
    for _ in range(3):
        await anext(response.body)
    assert (engine.is_busy, (await stats(engine))["running"]) == (True, 1)
    await response.close()
    made = engine.progress
    await asyncio.sleep(0.02)
    assert engine.progress == made < 10
    assert await stats(engine) == {"requests": 1, "completed": 0, "aborted": 1, "refused": 0, "running": 0}


async def test_a_cancelled_request_is_aborted_as_well():
    engine = await load("word", first_token_seconds=60)
    task = asyncio.create_task(ask(engine, question()))
    await asyncio.sleep(0)
    assert engine.room == 63
    task.cancel()
    await asyncio.wait([task])
    assert ((await stats(engine))["aborted"], engine.room) == (1, 64)


async def test_a_request_that_is_asked_to_finish_gives_what_it_has():
    engine = await load("word " * 1000, tokens_per_second=200)
    task = asyncio.create_task(ask(engine, question(), request_id="mine"))
    other = asyncio.create_task(ask(engine, question(), request_id="other"))
    while engine.progress < 6:
        await asyncio.sleep(0.001)
    await engine.finish("mine")
    _, answer = await task
    assert answer["choices"][0]["finish_reason"] == "abort"
    assert 1 <= answer["usage"]["completion_tokens"] < 1000
    assert not other.done()
    other.cancel()
    await asyncio.wait([other])


async def test_tokens_come_at_their_pace():
    engine = await load("a b c d e f", tokens_per_second=100, first_token_seconds=0.1)
    response = await engine.open(EngineRequest(CHAT, question(stream=True)))
    loop = asyncio.get_running_loop()
    begun = loop.time()
    times = [loop.time() async for event in response.body if b'"content":"' in event and b'"role"' not in event]
    assert times[0] - begun >= 0.1
    assert times[-1] - begun >= 0.145  # a token that was late makes the next ones no later
    assert all(later >= earlier for earlier, later in itertools.pairwise(times))


async def test_answers_are_recorded_once_and_given_again_without_the_engine(tmp_path):
    file = tmp_path / "answers.jsonl"
    line = {"path": CHAT, "request": question("who?"), "answer": {"text": "Me.\u2028"}}
    file.write_text(
        json.dumps(line, ensure_ascii=False) + "\n" + json.dumps({**line, "answer": {"text": "You."}}) + "\n\n"
    )
    engine = await load(recorded=str(file))
    given = [await say(engine, "who?", model="scripted", user="u"), *[await say(engine, "who?") for _ in range(2)]]
    assert given == ["Me.\u2028", "You.", "You."]
    status, message = await refusal(engine, question("what?"))
    assert (status, "has no answer to 'what?'" in message) == (500, True)


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"path": "/", "request": {}, "answer": {"txt": "a"}}'])
async def test_a_line_that_is_no_recording_is_named(tmp_path, line):
    file = tmp_path / "answers.jsonl"
    file.write_text("\n" + line)
    with pytest.raises(ConfigurationError, match=r"line 2 of .*answers.jsonl is not a recorded answer"):
        await load(recorded=str(file))


async def test_a_file_that_is_not_there_needs_somebody_to_ask(tmp_path):
    with pytest.raises(ConfigurationError, match="no recorded answers"):
        await load(recorded=str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (ScriptedLLM, "needs either answers or a file"),
        (lambda: ScriptedLLM("a", recorded="b"), "needs either answers or a file"),
        (lambda: ScriptedLLM("a", record_from="http://127.0.0.1"), "needs a file to record into"),
        (lambda: ScriptedLLM("a", tokens_per_secnd=1), "did you mean 'tokens_per_second'?"),
        (lambda: ScriptedLLM("a", tokens_per_second=0), "tokens_per_second=0 is not a number above 0"),
        (lambda: ScriptedLLM("a", first_token_seconds=-1), "first_token_seconds=-1"),
        (lambda: ScriptedLLM("a", max_num_seqs=0), "max_num_seqs=0"),
        (lambda: ScriptedLLM("a", max_model_len=True), "max_model_len=True"),
        (lambda: ScriptedLLM("a", fail_on={"a": 200}), "200 is no way to fail"),
        (lambda: ScriptedLLM({"(": "a"}), "'(' is not a regular expression"),
        (lambda: ScriptedLLM({"a": {"txt": "b"}}), "did you mean 'text'?"),
        (lambda: ScriptedLLM({"text": 3}), "is 3, not a text"),
        (lambda: ScriptedLLM([3]), "3 is not an answer"),
        (lambda: ScriptedLLM(3), "answers=3 is no script"),
        (lambda: ScriptedLLM([{"json": object()}]), "has no JSON form"),
        (lambda: ScriptedLLM([{"tool_calls": ["a"]}]), "'a' is not a tool call"),
    ],
)
def test_what_cannot_work_is_refused_in_the_app(make, part):
    with pytest.raises(DefinitionError) as caught:
        make()
    assert part in str(caught.value)


def test_the_declaration_is_plain_json():
    spec = ScriptedLLM({"a": {"json": {"b": [1]}}}, fail_on={"x": 500}, otherwise="c")
    again = EngineSpec.from_dict(json.loads(json.dumps({"type": spec.type, "options": spec.options})))
    assert again == spec


async def test_a_handler_gets_it_as_any_language_model():
    engine = (await load({"hi": "Hello."})).handle()
    assert (await engine.chat("hi")).text == "Hello."
    with pytest.raises(EngineRefusal, match="no pattern"):
        await engine.chat("who")
