"""`VLLM(..., mode="serve")`: a real `vllm serve` as a child of the worker, asked through the worker's engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import aclosing

import psutil
import pytest

from flashkit import VLLM, EngineDied, EngineRefusal, Weights
from flashkit.settings import Settings
from flashkit.worker.engines.answering import answer_job
from flashkit.worker.engines.engine import load_engine
from flashkit.worker.phases import Phases

pytestmark = [pytest.mark.models, pytest.mark.timeout(400)]
PLACE = {"type": "object", "properties": {"name": {"enum": ["Oslo", "Rome"]}}, "required": ["name"]}


def chat(text, **more):
    return {"messages": [{"role": "user", "content": text}], **more}


async def whole(engine, data):
    return json.loads((await answer_job(engine, data, job_id="job-1")).whole)


@pytest.fixture(scope="module")
async def engine(tiny_llama):
    weights = Weights("tests/tiny-llama", path=str(tiny_llama))
    spec = VLLM(weights, mode="serve", max_model_len=2048, max_num_seqs=4, warmup=["completion", "structured"])
    phases = Phases()
    engine = await load_engine(spec, Settings(), phases)
    assert {"weights", "engine"} <= set(phases.seconds)
    await engine.warm_up()
    yield engine
    await engine.close()


async def test_it_answers_under_the_weights_name(engine):
    models = await engine.handle().request("/v1/models")
    assert [model["id"] for model in models["data"]] == ["tests/tiny-llama"]
    answer = await engine.handle().chat("hi", max_tokens=4, temperature=0)
    assert answer.usage.completion_tokens <= 4
    again = await whole(engine, chat("hi", max_tokens=4, temperature=0))
    assert again["choices"][0]["message"]["content"] == answer.text


async def test_a_stream_says_the_same_as_a_whole_answer(engine):
    asked = chat("hi", max_tokens=32, temperature=0, ignore_eos=True)
    expected = (await whole(engine, asked))["choices"][0]["message"]["content"]
    answer = await answer_job(engine, {**asked, "stream": True}, job_id="job-1")
    async with aclosing(answer.pieces) as pieces:
        texts = [json.loads(piece) async for piece in pieces]
    assert all(text.endswith("\n\n") for text in texts)
    events = "".join(texts).split("\n\n")
    assert events[-2] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == expected


async def test_a_long_stream_comes_as_it_is_made(engine):
    """The server's processes wait for each other in naps: with both of two cores, it said nothing for three seconds."""
    waits, latest = [], time.monotonic()
    async for _ in engine.handle().stream(prompt="hi", max_tokens=1500, ignore_eos=True):
        waits.append(time.monotonic() - latest)
        latest = time.monotonic()
    assert max(waits) < 1.5, f"{len(waits)} pieces, the longest wait {max(waits):.1f} s"


async def test_refusals_and_structured_output_are_vllms(engine):
    with pytest.raises(EngineRefusal, match="HTTP 404"):
        await whole(engine, chat("hi", model="huge"))
    with pytest.raises(EngineRefusal, match="HTTP 400"):
        await whole(engine, chat("word " * 5000))
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE}}
    answer = await whole(engine, chat("hi", max_tokens=40, response_format=form))
    assert json.loads(answer["choices"][0]["message"]["content"])["name"] in {"Oslo", "Rome"}


async def test_a_stream_that_is_left_is_aborted_in_the_server(engine):
    tokens = engine.handle().stream(prompt="hi", max_tokens=2000, ignore_eos=True)
    async with aclosing(tokens):
        await anext(tokens)
        assert engine.room == 3
    assert engine.room == 4
    for _ in range(100):
        metrics = await engine.handle().request("/metrics")
        running = [line for line in metrics.splitlines() if line.startswith("vllm:num_requests_running")]
        if running and all(line.endswith(" 0.0") for line in running):
            break
        await asyncio.sleep(0.1)
    else:
        pytest.fail(f"still running: {running}")
    await engine.check()


async def test_a_long_answer_that_is_not_streamed_shows_its_progress(engine):
    before = engine.progress
    asking = asyncio.create_task(whole(engine, {"prompt": "hi", "max_tokens": 250, "ignore_eos": True}))
    while not asking.done() and engine.progress == before:
        await engine.check()
    await asking
    await engine.check()
    assert engine.progress > before


async def test_the_death_of_the_models_process_is_an_engine_that_died(engine):
    (core,) = (process for process in psutil.Process().children(recursive=True) if "EngineCore" in process.name())
    tokens = engine.handle().stream(prompt="hi", max_tokens=2000, ignore_eos=True)
    await anext(tokens)
    whole_answer = asyncio.create_task(engine.handle().complete("hi", max_tokens=2000, ignore_eos=True))
    await anext(tokens)
    os.kill(core.pid, signal.SIGKILL)
    with pytest.raises(EngineDied):
        [token async for token in tokens]
    for work in (whole_answer, engine.check(), engine.handle().chat("hi")):
        with pytest.raises(EngineDied):
            await work
