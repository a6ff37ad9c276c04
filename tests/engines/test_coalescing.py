"""Streams in pieces: whole events whatever the engine's bytes are cut into, few pieces, none of them late."""

from __future__ import annotations

import asyncio
import itertools
import re
import selectors
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashkit.errors import EngineDied
from flashkit.worker.engines import coalescing
from flashkit.worker.engines.coalescing import PIECE_BYTES, EventCutter, Pace, coalesce, cut_events

EVENT = b'data: {"text":"a"}\n\n'


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to what is due next, so that seconds cost nothing and are exact."""

    def __init__(self) -> None:
        self.now = 0.0
        loop = self

        class Selector(selectors.SelectSelector):
            def select(self, timeout=None):
                loop.now += timeout or 0.0
                return super().select(0)

        super().__init__(Selector())

    def time(self) -> float:
        return self.now


@pytest.fixture
def virtual():
    """Run a coroutine in virtual time."""

    def run(work):
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(work)

    return run


async def paced(count: int, seconds: float) -> AsyncGenerator[bytes, None]:
    for _ in range(count):
        await asyncio.sleep(seconds)
        yield EVENT


async def arrivals(events: AsyncGenerator[bytes, None], *, post_seconds: float = 0.0) -> list[tuple[float, int]]:
    """Return when each piece was handed out and how many events it had."""
    found = []
    async with aclosing(coalesce(events)) as pieces:
        async for piece in pieces:
            found.append((asyncio.get_running_loop().time(), piece.count("\n\n")))
            await asyncio.sleep(post_seconds)
    return found


async def from_list(chunks: list[bytes]) -> AsyncGenerator[bytes, None]:
    for chunk in chunks:
        yield chunk
        await asyncio.sleep(0)


LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r"])
LINES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1, max_size=20)


@st.composite
def streams(draw):
    """An event stream with one kind of line end, and the places where it is cut."""
    end = draw(LINE_ENDS)
    events = draw(st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=6))
    body = "".join(end.join(lines) + end + end for lines in events).encode()
    cuts = draw(st.lists(st.integers(0, max(len(body), 1)), max_size=12))
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    return [end.join(lines) for lines in events], body, [body[a:b] for a, b in itertools.pairwise(places)]


@given(streams())
def test_events_are_whole_however_the_bytes_are_cut(stream):
    events, body, chunks = stream
    cutter = EventCutter()
    found = [event for chunk in chunks for event in cutter.feed(chunk)]
    assert b"".join(found) + cutter.rest() == body
    assert cutter.rest().strip() == b""
    # A line end of two bytes may be cut behind its first one: the second one then begins the next event.
    assert [event.decode().strip("\r\n") for event in found] == [event.strip("\r\n") for event in events]


@given(streams())
def test_pieces_are_whole_events_in_whole_characters(stream):
    _, body, chunks = stream

    async def pieces():
        return [piece async for piece in coalesce(cut_events(from_list(chunks)))]

    found = asyncio.run(pieces())
    assert "".join(found).encode() == body
    assert all(re.search(r"(\r\n|\n|\r){2}\Z", piece) for piece in found if piece.strip())


def test_one_byte_at_a_time_is_cut_the_same():
    body = 'data: {"text":"日本語 🎌"}\n\ndata: [DONE]\n\n'.encode()
    cutter = EventCutter()
    found = [event for byte in body for event in cutter.feed(bytes([byte]))]
    assert [event.decode() for event in found] == ['data: {"text":"日本語 🎌"}\n\n', "data: [DONE]\n\n"]


def test_what_is_left_without_its_end_is_given_too():
    async def pieces():
        return [piece async for piece in coalesce(cut_events(from_list([b"data: 1\n\nda", b"ta: 2"])))]

    assert "".join(asyncio.run(pieces())) == "data: 1\n\ndata: 2"


def test_bytes_that_are_no_text_do_not_end_the_stream():
    async def pieces():
        return [piece async for piece in coalesce(cut_events(from_list([b"data: \xff\xfe\n\n"])))]

    assert asyncio.run(pieces()) == ["data: ��\n\n"]


@pytest.mark.parametrize("per_second", [12, 15, 20, 30, 38, 60, 80, 200, 1000, 10_000])
def test_an_answer_of_256_tokens_is_at_most_24_pieces(virtual, per_second):
    found = virtual(arrivals(paced(256, 1 / per_second)))
    assert sum(count for _, count in found) == 256
    assert len(found) <= 24


@pytest.mark.parametrize("per_second", [1, 5, 12, 30, 60, 200, 1000])
def test_the_first_event_goes_at_once_and_no_event_waits_long(virtual, per_second):
    gap = 1 / per_second
    found = virtual(arrivals(paced(256, gap)))
    assert found[0] == (pytest.approx(gap), 1)
    given = 0
    for number, (when, count) in enumerate(found):
        oldest = (given + 1) * gap  # when the first event of the piece was made
        assert when - oldest <= (1.25 if number >= 8 else 0.625) + 1e-6
        if per_second >= 70:
            assert when - oldest <= 0.2 + 1e-6
        given += count


def test_an_engine_slower_than_the_longest_wait_has_each_event_sent_at_once(virtual):
    found = virtual(arrivals(paced(10, 0.8)))
    assert [count for _, count in found] == [1] * 10
    assert [when for when, _ in found] == pytest.approx([0.8 * number for number in range(1, 11)])


def test_pieces_grow(virtual):
    counts = [count for _, count in virtual(arrivals(paced(256, 1 / 60)))]
    assert counts[:5] == sorted(counts[:5])
    assert counts[0] == 1
    assert max(counts) >= 14


def test_events_gather_while_a_post_is_under_way(virtual):
    found = virtual(arrivals(paced(256, 1 / 100), post_seconds=1.0))
    assert len(found) <= 5
    assert [count for _, count in found][1] == pytest.approx(100, abs=2)


def test_a_stream_that_ends_is_not_waited_for(virtual):
    async def work():
        found = await arrivals(paced(3, 0.001))
        return found, asyncio.get_running_loop().time()

    found, ended = virtual(work())
    assert ended == pytest.approx(0.003)
    assert sum(count for _, count in found) == 3


def test_an_engine_far_ahead_of_the_posts_waits(virtual, monkeypatch):
    monkeypatch.setattr(coalescing, "AHEAD_BYTES", 10 * len(EVENT))
    made = 0

    async def eager():
        nonlocal made
        for _ in range(1000):
            made += 1
            yield EVENT

    async def work():
        async with aclosing(coalesce(eager())) as pieces:
            await anext(pieces)
            await asyncio.sleep(5)
            return made

    assert virtual(work()) < 30


def test_an_event_larger_than_a_post_is_cut_between_characters():
    event = ("data: " + "語" * PIECE_BYTES + "\n\n").encode()

    async def work():
        return [piece async for piece in coalesce(from_list([EVENT, event, EVENT]))]

    pieces = asyncio.run(work())
    assert "".join(pieces).encode() == EVENT + event + EVENT
    assert all(len(piece.encode()) <= PIECE_BYTES for piece in pieces)
    assert "�" not in "".join(pieces)


def test_many_events_at_once_are_several_pieces():
    events = [b"data: " + b"x" * 100_000 + b"\n\n"] * 8

    async def at_once():
        for event in events:
            yield event

    async def work():
        return [piece async for piece in coalesce(at_once())]

    pieces = asyncio.run(work())
    assert "".join(pieces).encode() == b"".join(events)
    assert all(len(piece) <= PIECE_BYTES for piece in pieces)
    assert all(piece.endswith("\n\n") for piece in pieces)


def test_what_was_made_before_a_failure_comes_first():
    async def failing():
        yield EVENT
        yield EVENT
        raise EngineDied("the engine died")

    found = []

    async def work():
        async for piece in coalesce(failing()):
            found.append(piece)  # noqa: PERF401 - what came before the failure counts

    with pytest.raises(EngineDied):
        asyncio.run(work())
    assert "".join(found).encode() == EVENT * 2


def test_closing_closes_the_events_at_once():
    ended = []

    async def endless():
        try:
            while True:
                yield EVENT
                await asyncio.sleep(0.001)
        finally:
            ended.append(True)

    async def work():
        async with aclosing(coalesce(endless())) as pieces:
            await anext(pieces)
        return list(ended)

    assert asyncio.run(work()) == [True]


def test_a_reader_that_is_cancelled_closes_the_events():
    ended = []

    async def silent():
        try:
            yield EVENT
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def read():
        async with aclosing(coalesce(silent())) as pieces:
            async for _ in pieces:
                pass

    async def work():
        task = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        return list(ended)

    assert asyncio.run(work()) == [True]


def test_the_pace_begins_small_and_ends_at_its_values():
    pace = Pace()
    assert pace.of_piece(0) == Pace(0.0, 0.0, 1)
    assert pace.of_piece(1).longest < 0.1
    assert pace.of_piece(50) == pace
