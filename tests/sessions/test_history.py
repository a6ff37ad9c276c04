"""A conversation is made to fit, and what matters stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        seen.extend(message.content for message in messages)
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
