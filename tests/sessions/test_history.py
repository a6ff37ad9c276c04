"""A conversation is made to fit, and what matters stays."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from flashkit import Session
from flashkit.errors import SessionError
from flashkit.worker.sessions.history import History, Message


def conversation(turns: int, *, words: int = 40) -> History:
    """Return a history with a system message and that many questions and answers."""
    history = History([Message("system", "Be brief.")])
    for turn in range(turns):
        history.add("user", f"question {turn} " + "word " * words)
        history.add("assistant", f"answer {turn} " + "word " * words)
    return history


async def test_a_conversation_that_fits_is_left_alone() -> None:
    history = conversation(2)
    before = history.messages
    await history.compact(10_000)
    assert history.messages == before


async def test_the_oldest_messages_go_first_and_the_last_one_stays() -> None:
    history = conversation(20)
    size = await history.compact(300)
    contents = [message["content"] for message in history.messages]
    assert size <= 300
    assert contents[0] == "Be brief."
    assert contents[-1].startswith("answer 19")
    assert not any(text.startswith("question 0 ") for text in contents)


async def test_long_tool_output_is_cut_in_the_middle_before_words_are_lost() -> None:
    history = conversation(3)
    history.add("tool", "begin " + "x" * 20_000 + " end", name="search")
    history.add("user", "so?")
    await history.compact(1_000, tool_output_tokens=50)
    tool = next(message for message in history.messages if message["role"] == "tool")
    assert tool["content"].startswith("begin")
    assert tool["content"].endswith("end")
    assert "characters left out" in tool["content"]
    assert len(history) == 9


@pytest.mark.parametrize("is_async", [False, True])
async def test_dropped_messages_reach_the_summary_hook(is_async: bool) -> None:
    seen: list[str] = []

    def summarise(messages):
        seen.extend(message.text for message in messages)
        return "they talked"

    async def summarise_later(messages):
        return summarise(messages)

    history = conversation(20)
    await history.compact(400, summarise=summarise_later if is_async else summarise)
    assert seen[0].startswith("question 0 ")
    assert history.messages[1] == {"role": "system", "content": "Summary of the conversation so far: they talked"}


async def test_what_cannot_fit_is_an_error_with_both_numbers() -> None:
    history = History([Message("system", "x" * 4_000), Message("user", "hello")])
    with pytest.raises(SessionError, match="more than the 100"):
        await history.compact(100)


def test_a_history_survives_its_snapshot() -> None:
    history = conversation(2)
    history.add("tool", "42", name="calculator")
    assert History.from_json(history.to_json()).messages == history.messages


@settings(deadline=None)
@given(
    sizes=st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.integers(0, 2_000)), min_size=1),
    room=st.integers(600, 3_000),
)
async def test_compaction_always_fits_and_keeps_the_order(sizes, room) -> None:
    history = History()
    for index, (role, size) in enumerate(sizes):
        history.add(role, f"{index}:" + "x" * size)
    before = [message["content"].partition(":")[0] for message in history.messages]
    assert await history.compact(room, tool_output_tokens=100) <= room
    after = [message["content"].partition(":")[0] for message in history.messages]
    assert after == before[-len(after) :]


def call_of(number: int) -> dict:
    """Return a call of a tool as chat APIs write it."""
    return {"id": f"call-{number}", "type": "function", "function": {"name": "search", "arguments": "{}"}}


def require_whole(history: History) -> None:
    """Check that every tool output follows the message that asked for it, and every call has its output."""
    open_calls: list[str] = []
    for message in history.messages:
        if message["role"] == "tool":
            assert message["tool_call_id"] in open_calls
            open_calls.remove(message["tool_call_id"])
        else:
            assert not open_calls
            open_calls = [call["id"] for call in message.get("tool_calls", ())]


@pytest.mark.parametrize("characters", [0, 40, 400, 750, 20_000])
async def test_a_long_life_has_one_summary_that_is_made_of_the_one_before(characters):
    history = conversation(0)
    made: list[list[Message]] = []

    def summarise(messages) -> str:
        made.append(list(messages))
        return f"number {len(made)} " + "s" * characters

    for turn in range(30):
        for index in range(8):
            history.add("user" if index % 2 == 0 else "assistant", f"{turn}.{index} " + "word " * 100)
        assert await history.compact(1_000, summarise=summarise) <= 1_000
        summaries = [message["content"] for message in history.messages if "Summary" in message["content"]]
        assert len(summaries) == 1
        assert f"number {len(made)}" in summaries[0]
        assert history.messages[0]["content"] == "Be brief."
        assert history.messages[-1]["content"].startswith(f"{turn}.7 ")
    assert len(made) == 30
    for number, messages in enumerate(made[1:], start=1):
        assert [message.is_summary for message in messages] == [True] + [False] * (len(messages) - 1)
        assert f"number {number}" in messages[0].text
        assert len(messages) > 1


async def test_every_message_is_summarised_once():
    history, seen = History(), []

    def summarise(messages) -> str:
        seen.extend(message.text for message in messages if not message.is_summary)
        return "s" * 400

    for number in range(200):
        history.add("user", f"{number} " + "word " * 40)
        await history.compact(500, summarise=summarise)
    kept = [message["content"] for message in history.messages if not message["content"].startswith("Summary")]
    assert [text.partition(" ")[0] for text in [*seen, *kept]] == [str(number) for number in range(200)]


async def test_a_summary_is_still_one_after_its_snapshot():
    history = conversation(20)
    await history.compact(400, summarise=lambda messages: "first")
    history = History.from_json(history.to_json())
    assert "is_summary" not in history.messages[1]
    for _ in range(20):
        history.add("user", "word " * 40)
    await history.compact(400, summarise=lambda messages: "second after " + messages[0].text)
    assert [message["role"] for message in history.messages].count("system") == 2
    assert history.messages[1]["content"].endswith("second after Summary of the conversation so far: first")


async def test_a_summary_goes_first_where_none_is_made_any_more():
    history = conversation(20)
    await history.compact(400, summarise=lambda messages: "s" * 300)
    history.add("user", "word " * 200)
    await history.compact(400)
    assert not any("Summary" in message["content"] for message in history.messages)


async def test_a_summary_that_has_no_room_at_all_is_left_out():
    history = conversation(3)
    history.add("user", "x" * 4 * 86)
    assert await history.compact(98, summarise=lambda messages: "s" * 300) <= 98
    assert [message["role"] for message in history.messages] == ["system", "user"]


async def test_a_hook_that_fails_loses_nothing():
    async def away(messages) -> str:
        raise ConnectionError("the model is away")

    history = conversation(20)
    before = history.messages
    with pytest.raises(ConnectionError):
        await history.compact(400, summarise=away)
    assert history.messages == before


async def test_what_is_said_while_the_hook_works_is_kept():
    async def summarise(messages) -> str:
        history.add("user", "one more thing")
        return "they talked"

    history = conversation(20)
    await history.compact(400, summarise=summarise)
    assert history.messages[-1]["content"] == "one more thing"
    assert history.messages[-2]["content"].startswith("answer 19")


async def test_what_cannot_fit_is_left_as_it_was_and_the_hook_is_not_asked():
    history = conversation(3)
    history.add("user", "x" * 4_000)
    before = history.messages
    with pytest.raises(SessionError, match="more than the 100"):
        await history.compact(100, summarise=lambda messages: pytest.fail("asked"))
    assert history.messages == before


# ------------------------------------------------------------------ tools, parts


def test_a_conversation_with_tools_comes_out_as_chat_apis_take_it():
    history = History()
    history.add("user", [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": "u"}}])
    history.add("assistant", tool_calls=[call_of(1)])
    history.add("tool", "a cat", tool_call_id="call-1", name="search")
    expected = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": "u"}}],
        },
        {"role": "assistant", "content": None, "tool_calls": [call_of(1)]},
        {"role": "tool", "content": "a cat", "name": "search", "tool_call_id": "call-1"},
    ]
    assert history.messages == expected
    assert History.from_json(history.to_json()).messages == expected
    assert history.tokens > 1_000  # the image counts, by a rule of thumb


def test_calls_may_be_the_objects_of_a_models_client():
    class Function(BaseModel):
        name: str
        arguments: str

    class Call(BaseModel):
        id: str
        type: str
        function: Function

    history = History()
    history.add("assistant", "", tool_calls=[Call(**call_of(1))])
    assert history.messages[0]["tool_calls"] == [call_of(1)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"content": None}, "neither content nor tool_calls"),
        ({"tool_calls": [object()]}, "cannot be kept"),
        ({"tool_calls": ["search"]}, "give a list of objects"),
        ({"content": {"type": "text"}}, "give a list of objects"),
    ],
)
def test_what_is_no_message_is_refused(given, said):
    with pytest.raises(SessionError, match=said):
        History().add("assistant", **given)


async def test_the_texts_of_tool_output_in_parts_are_cut_too():
    image = {"type": "image_url", "image_url": {"url": "u"}}
    history = conversation(1)
    history.add("assistant", tool_calls=[call_of(1)])
    parts = [{"type": "text", "text": "begin " + "x" * 20_000 + " end"}, image]
    history.add("tool", parts, tool_call_id="call-1")
    await history.compact(2_000, tool_output_tokens=100)
    text, last = history.messages[-1]["content"]
    assert last == image
    assert text["text"].startswith("begin")
    assert "characters left out" in text["text"]


async def test_a_conversation_that_ends_with_tool_output_keeps_what_asked_for_it():
    history = conversation(20)
    history.add("assistant", tool_calls=[call_of(1), call_of(2)])
    history.add("tool", "one", tool_call_id="call-1")
    history.add("tool", "two", tool_call_id="call-2")
    await history.compact(100)
    assert [message["role"] for message in history.messages][-3:] == ["assistant", "tool", "tool"]
    require_whole(history)


@settings(deadline=None)
@given(
    rounds=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3_000)), min_size=1, max_size=6), min_size=1, max_size=8
    ),
    room=st.integers(1_500, 4_000),
    summary=st.none() | st.integers(0, 5_000),
    per_token=st.integers(1, 6),
)
async def test_however_often_it_is_compacted_it_fits_and_calls_stay_with_their_output(rounds, room, summary, per_token):
    count = lambda text: -(-len(text) // per_token)  # noqa: E731
    history = History([Message("system", "Be brief.")], count_tokens=count)
    summarise = None if summary is None else (lambda messages: "s" * summary)
    number = 0
    for messages in rounds:
        for calls, size in messages:
            numbers = range(number, number := number + calls)
            history.add("assistant", "x" * (size % 700), tool_calls=[call_of(each) for each in numbers])
            for each in numbers:
                history.add("tool", "y" * size, tool_call_id=f"call-{each}")
        assert await history.compact(room, tool_output_tokens=60, summarise=summarise) <= room
        require_whole(history)
        assert history.messages[0]["content"] == "Be brief."
        assert sum(message.get("content", "").startswith("Summary") for message in history.messages) <= 1


# ------------------------------------------------------------------ inside of steps


class Trips(BaseModel):
    booked: list[str] = []
    limit: int = 0


@pytest.mark.parametrize("place", ["step", "handler", "nowhere"])
async def test_a_step_that_changes_the_state_is_named_in_the_log(lab, caplog, place):
    async def agent(session: Session[Trips], q: str) -> list[str]:
        def book() -> str:
            if place == "step":
                session.state.booked.append("Oslo")
            return f"Oslo below {session.state.limit}"

        session.state.limit = 400
        booked = await session.step("book", book)
        if place == "handler":
            session.state.booked.append(booked)
        return session.state.booked

    await (await lab.worker(agent)).answer("j1", session_id="s", q="a")
    warnings = [record.getMessage() for record in caplog.records if "the state changed" in record.getMessage()]
    assert len(warnings) == (place == "step")
    assert all("function of step 'book'" in warning for warning in warnings)


async def test_the_state_is_set_in_the_handler_and_not_in_a_step(lab):
    async def agent(session: Session[Trips], q: str) -> int:
        def change() -> None:
            session.state = Trips()

        session.state = Trips(limit=7)
        if q == "step":
            await session.effect("change", change)
        return session.state.limit

    worker = await lab.worker(agent)
    assert await worker.answer("j1", session_id="s", q="handler") == 7
    error = await worker.error("j2", session_id="s", q="step")
    assert "session.state was set in the function of step 'change'" in error.message


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("method", ["add", "clear", "compact"])
async def test_the_function_of_a_step_cannot_change_what_a_resumption_would_lose(lab, is_async, method):
    async def agent(session: Session[None], q: str) -> str:
        def change() -> None:
            match method:
                case "add":
                    session.history.add("user", "hello")
                case "clear":
                    session.history.clear()
                case _:
                    asyncio.run(session.history.compact(100))

        async def change_later() -> None:
            await session.history.compact(100) if method == "compact" else change()

        session.history.add("user", "hello")
        return await session.step("change", change_later if is_async else change)

    error = await (await lab.worker(agent)).error("j1", session_id="s", q="a")
    assert error.code == "session_error"
    assert f"history.{method}() was called in the function of step 'change'" in error.message
