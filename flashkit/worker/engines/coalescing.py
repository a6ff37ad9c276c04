"""An engine's stream of bytes in pieces that are worth a post each: whole events, few of them, none of them late.

Each partial output of a job is one HTTP request, and an engine makes an event for each token. So events gather: the
first one goes at once, then pieces grow with what the engine makes meanwhile. While a piece is being sent the next
one gathers, so a slow platform gets fewer pieces, not later ones.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Final

PIECE_BYTES: Final = 256 * 1024
"""A piece is at most so large, which leaves room for JSON's escapes below the platform's limit of 1 MB."""
AHEAD_BYTES: Final = 4 * PIECE_BYTES
"""An engine that is further ahead of the posts waits."""
_SLOWEST_GATHERED_S: Final = 0.5
"""Events that are farther apart go one by one."""
_FIRST_LONG: Final = 8
"""The first piece that gathers for as long as any."""
_LINE_END: Final = rb"(?:\r\n|\n|\r(?!\n))"
_EVENT_END: Final = re.compile(_LINE_END + rb"{2}")
_LONGEST_END: Final = 4


@dataclass(frozen=True, slots=True)
class Pace:
    """When a piece goes: after `shortest` seconds with `events` in it, after `longest` in any case.

    All three begin small and double with each piece, so that the first words come as they are made; `longest` stays at
    its half for a few pieces, because who has begun to read notices a second. With these values an answer of 256 tokens
    is 24 pieces at most from an engine that makes 12 tokens a second or more.
    """

    shortest: float = 0.1
    longest: float = 1.25
    events: int = 14

    def of_piece(self, number: int) -> Pace:
        """Return what counts for the piece with this number; 0 is the first."""
        if number == 0:
            return Pace(0.0, 0.0, 1)
        share = 2.0 ** min(number - 5, 0)
        longest = self.longest * (1.0 if number >= _FIRST_LONG else min(0.5, share))
        return Pace(self.shortest * share, longest, min(self.events, 2 ** min(number, 30)))


class EventCutter:
    """Puts the events of a stream together again, however its bytes were cut on the way."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that are complete now."""
        if not self._rest and _is_one_event(data):
            return [data]
        self._rest += data
        events = []
        start = 0
        for end in _EVENT_END.finditer(self._rest, self._searched):
            events.append(bytes(self._rest[start : end.end()]))
            start = end.end()
        del self._rest[:start]
        self._searched = max(0, len(self._rest) - _LONGEST_END)
        return events

    def rest(self) -> bytes:
        """Return what came after the last whole event."""
        return bytes(self._rest)


def _is_one_event(data: bytes) -> bool:
    """Return True for what engines mostly send: one event, whose lines end with a line feed."""
    return data.endswith(b"\n\n") and data.find(b"\n\n") == len(data) - 2 and b"\r" not in data


async def cut_events(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the events of a stream one by one, each with the empty line that ends it."""
    cutter = EventCutter()
    async for data in body:
        for event in cutter.feed(data):
            yield event
    if rest := cutter.rest():
        yield rest


async def coalesce(events: AsyncGenerator[bytes, None], *, pace: Pace | None = None) -> AsyncGenerator[str, None]:
    """Yield events as text, some at a time; closing this closes them.

    An event is cut only where it is larger than what a post may carry, and then between two characters.
    """
    gathering = _Gathering(events)
    filling = asyncio.create_task(gathering.fill())
    number = 0
    try:
        while await gathering.wait_for_piece((pace or Pace()).of_piece(number)):
            for text in gathering.take():
                number += 1
                yield text
        await filling
    finally:
        filling.cancel()
        await asyncio.wait([filling])
        if not filling.cancelled():
            filling.exception()  # raised above, or nobody is there to hear of it


class _Gathering:
    """Events that wait for their post."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._is_complete = False
        self._since = self._latest = self._loop.time()
        self._gap = 0.0
        self._wanted: float = 1
        self._enough = asyncio.Event()
        self._taken = asyncio.Event()

    async def fill(self) -> None:
        """Take the events as they come."""
        try:
            async with aclosing(self._events):
                async for event in self._events:
                    self._add(event)
                    while self._bytes > AHEAD_BYTES:
                        self._taken.clear()
                        await self._taken.wait()
        finally:
            self._is_complete = True
            self._enough.set()

    async def wait_for_piece(self, pace: Pace) -> bool:
        """Return when it is time for the next piece; False when there is none any more."""
        await self._gather(1, math.inf)
        if self._gap < min(pace.longest, _SLOWEST_GATHERED_S):  # else nothing will come in time to go with it
            await self._gather(math.inf, self._since + pace.shortest)
            await self._gather(pace.events, self._since + pace.longest)
        return bool(self._waiting)

    def take(self) -> list[str]:
        """Return what has gathered: one piece, or several where that is too much for one."""
        events = list(self._waiting)
        self._waiting.clear()
        self._bytes = 0
        self._taken.set()
        return [piece.decode(errors="replace") for piece in _pieces(events)]

    def _add(self, event: bytes) -> None:
        now = self._loop.time()
        self._gap, self._latest = now - self._latest, now
        if not self._waiting:
            self._since = now
        self._waiting.append(event)
        self._bytes += len(event)
        if self._has_enough():
            self._enough.set()

    def _has_enough(self) -> bool:
        return self._is_complete or len(self._waiting) >= self._wanted or self._bytes >= PIECE_BYTES

    async def _gather(self, wanted: float, until: float) -> None:
        """Return when so many events wait, or more than fits into a piece, or all, or it is `until`."""
        self._wanted = wanted
        if self._has_enough() or until <= self._loop.time():
            return
        self._enough.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(None if math.isinf(until) else until):
                await self._enough.wait()


def _pieces(events: list[bytes]) -> list[bytes]:
    """Return the events joined to pieces that a post can carry."""
    pieces: list[bytes] = []
    gathered: list[bytes] = []
    size = 0
    for event in events:
        if gathered and size + len(event) > PIECE_BYTES:
            pieces.append(b"".join(gathered))
            gathered, size = [], 0
        *whole, event_rest = _cut(event)
        pieces += whole
        gathered.append(event_rest)
        size += len(event_rest)
    return [*pieces, b"".join(gathered)] if gathered else pieces


def _cut(event: bytes) -> list[bytes]:
    """Return an event that is too large in parts, cut between two characters."""
    parts = []
    while len(event) > PIECE_BYTES:
        end = PIECE_BYTES
        while end > PIECE_BYTES - 4 and event[end] & 0xC0 == 0x80:  # noqa: PLR2004 - within a character of UTF-8
            end -= 1
        parts.append(event[:end])
        event = event[end:]
    return [*parts, event]
