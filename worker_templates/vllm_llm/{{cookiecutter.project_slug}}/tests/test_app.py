"""The endpoints on the local platform, with a scripted model in the place of vLLM."""

import os

import pytest
from flashkit import ScriptedLLM
from flashkit.testing import run_job, with_engine

from app import MODEL, extract, llm

NAME = llm.spec.name


def test_a_chat_is_answered(endpoint):
    answer = endpoint(NAME).call({"messages": [{"role": "user", "content": "What is a queue?"}]})
    assert answer["choices"][0]["message"]["content"] == "A queue holds jobs until a worker is free."


def test_a_stream_comes_in_pieces(endpoint):
    pieces = list(endpoint(NAME).stream({"prompt": "What is a queue?", "stream": True}))
    assert pieces[-1].rstrip().endswith("data: [DONE]")


def test_a_tool_is_called(endpoint):
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
    request = {"messages": [{"role": "user", "content": "How is the weather?"}], "tools": tools}
    [call] = endpoint(NAME).call(request)["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"


def test_a_contact_is_extracted(endpoint):
    assert endpoint(extract.spec.name).call({"text": "Yours, Ada"}) == {"name": "Ada", "email": "ada@example.org"}


def test_nonsense_of_the_model_fails_the_job():
    confused = with_engine(extract, ScriptedLLM("I would rather not say."))
    assert run_job(confused, {"text": "Yours, Ada"}).error is not None


@pytest.mark.skipif("FLASHKIT_LLM_URL" not in os.environ, reason="set FLASHKIT_LLM_URL to ask a real model")
def test_a_real_model_answers():
    answer = run_job(llm, {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}).output
    assert answer["choices"][0]["message"]["content"], MODEL.name
