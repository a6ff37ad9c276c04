"""Which texts go into the next batch: a queue of many callers' texts, as a pure state machine.

Knows neither models nor threads; time is an argument. Callers are served in the order of who was served least recently:
the first one's next text leads the batch, and texts of about its length fill it, the others' before more of its own.
So every text moves up with each batch, a caller with thousands of texts takes turns like everybody else, and little of
a batch is padding. Where nothing is padded, a batch is the next texts in their order.

Texts come in untokenized, with their sizes in characters; `next_pieces` says which to tokenize next, fair in the same
way, and not much further ahead than batches need.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

WINDOW_BATCHES: Final = 8
"""How many batches' worth of texts are looked at to find some of about the same length."""
WINDOW_TEXTS: Final = 2_048
PIECE_TEXTS: Final = 256
PIECE_CHARACTERS: Final = 200_000
"""About 20 ms of tokenizing."""
TEXTS_OF_ONE_CALLER: Final = 64
"""That are tokenized in one go."""
CHARACTERS_PER_TOKEN: Final = 4
"""A guess, for texts that are not tokenized yet."""
FULL_BATCHES: Final = 8
"""With this many batches' worth waiting there is no room for more jobs."""
PADDING_SHARE: Final = 0.15
"""Of a batch that may be padding."""
QUEUE_BATCHES: Final = 4
"""A text may be passed over for as long as so many batches take,"""
QUEUE_SHARE: Final = 1.5
"""or so much of what waits: behind a long queue all have waited long, and in their order they are mostly padding."""


class Item(NamedTuple):
    """One text of one caller."""

    caller: int
    position: int


class Piece(NamedTuple):
    """Texts of one caller that are tokenized together: from `start` on, before `stop`."""

    caller: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts that go through the model together."""

    items: tuple[Item, ...]
    tokens: int
    """Of the texts, without padding."""
    padded_tokens: int
    """That the model computes."""


@dataclass(slots=True)
class _Caller:
    id: int
    sizes: Sequence[int]
    since: float
    """When it came, or was last served."""
    waiting: int
    """Tokens of its texts that are in no batch yet, guessed where they are not tokenized."""
    taken: int = 0
    """Texts given out to be tokenized."""
    ready: dict[int, int] = field(default_factory=dict)
    """Tokens by index, of the texts that wait for a batch."""
    ready_tokens: int = 0


class _Candidate(NamedTuple):
    length: int
    place: int
    """In the order of service, negative, so that of two of the same length the sooner one sorts last."""
    item: Item


class Batcher:
    """The waiting texts of all callers."""

    def __init__(
        self,
        *,
        max_batch_tokens: int,
        max_queue_seconds: float = 0.1,
        free_tokens: int = 0,
        is_padded: bool = True,
    ) -> None:
        """Begin empty.

        Args:
            max_batch_tokens: Of a batch, padding included; a longer text has a batch of its own.
            max_queue_seconds: A text that waited this long goes into the next batch whatever its length, if it fits.
            free_tokens: A batch of so many takes no longer than a smaller one, so padding up to there costs nothing.
            is_padded: The texts of a batch are padded to the longest one.
        """
        self.max_batch_tokens = max_batch_tokens
        self.max_queue_seconds = max_queue_seconds
        self._free_tokens = free_tokens
        self._is_padded = is_padded
        self._callers: dict[int, _Caller] = {}  # in the order of service
        self._waiting_tokens = 0
        self._ready_tokens = 0

    @property
    def waiting_tokens(self) -> int:
        """Tokens of all texts that are in no batch yet; a guess for those that are not tokenized."""
        return self._waiting_tokens

    @property
    def is_full(self) -> bool:
        """True when enough is waiting."""
        return self._waiting_tokens >= self.max_batch_tokens * FULL_BATCHES

    @property
    def has_full_batch(self) -> bool:
        """True when the tokenized texts fill a batch."""
        return self._ready_tokens >= self.max_batch_tokens

    def wait_for_fits(self, batch_seconds: float) -> None:
        """Let texts be passed over in proportion to the queue, as a batch now takes so long."""
        queued = self._waiting_tokens / self.max_batch_tokens
        self.max_queue_seconds = batch_seconds * max(QUEUE_BATCHES, QUEUE_SHARE * queued)

    def add(self, caller: int, sizes: Sequence[int], *, now: float) -> None:
        """Take in a caller's texts, by their sizes in characters."""
        waiting = sum(map(_guess_tokens, sizes))
        self._callers[caller] = _Caller(caller, sizes, now, waiting)
        self._waiting_tokens += waiting

    def drop(self, caller: int) -> None:
        """Forget a caller's texts, as far as they are in no batch."""
        gone = self._callers.pop(caller, None)
        if gone is not None:
            self._waiting_tokens -= gone.waiting
            self._ready_tokens -= gone.ready_tokens

    def next_pieces(self) -> list[Piece]:
        """Return what to tokenize next, some of each caller's; empty when there is nothing to do."""
        pieces: list[Piece] = []
        texts, characters = PIECE_TEXTS, PIECE_CHARACTERS
        ahead = self.max_batch_tokens * WINDOW_BATCHES
        for caller in self._callers.values():
            if texts <= 0 or characters <= 0:
                break
            if caller.ready_tokens >= ahead:
                continue
            piece = _piece_of(caller, min(texts, TEXTS_OF_ONE_CALLER), characters)
            if piece.start < piece.stop:
                caller.taken = piece.stop
                pieces.append(piece)
                texts -= piece.stop - piece.start
                characters -= sum(caller.sizes[piece.start : piece.stop])
        return pieces

    def tokenized(self, piece: Piece, lengths: Sequence[int]) -> None:
        """Let texts wait for a batch, now that their tokens are counted: one at least for each text."""
        caller = self._callers.get(piece.caller)
        if caller is None:  # dropped meanwhile
            return
        caller.ready.update(enumerate(lengths, piece.start))
        tokens = sum(lengths)
        change = tokens - sum(map(_guess_tokens, caller.sizes[piece.start : piece.stop]))
        caller.ready_tokens += tokens
        caller.waiting += change
        self._ready_tokens += tokens
        self._waiting_tokens += change

    def next_batch(self, now: float) -> Batch | None:
        """Return the next batch and forget its texts; None when no tokenized text waits."""
        if self._is_padded:
            candidates = list(self._window())
            chosen = self._must_come(candidates, now)
            chosen += self._fitting(chosen, sorted(candidates[len(chosen) :]))
        else:
            chosen = self._in_order()
        return self._take(chosen, now) if chosen else None

    def _window(self) -> Iterator[_Candidate]:
        """Yield waiting texts in their fair order: the first one of every caller, then the second ones."""
        streams = [(caller.id, iter(caller.ready.items())) for caller in self._callers.values() if caller.ready]
        tokens = place = 0
        while streams:
            left = []
            for caller, stream in streams:
                if (entry := next(stream, None)) is None:
                    continue
                if place >= WINDOW_TEXTS or (tokens >= self.max_batch_tokens * WINDOW_BATCHES):
                    return
                yield _Candidate(entry[1], -place, Item(caller, entry[0]))
                tokens += entry[1]
                place += 1
                left.append((caller, stream))
            streams = left

    def _in_order(self) -> list[_Candidate]:
        """Return the first text, and those behind it that fit."""
        chosen: list[_Candidate] = []
        tokens = 0
        for candidate in self._window():
            tokens += candidate.length
            if chosen and tokens > self.max_batch_tokens:
                break
            chosen.append(candidate)
        return chosen

    def _must_come(self, candidates: Sequence[_Candidate], now: float) -> list[_Candidate]:
        """Return the first text, if there is one, and those behind it that waited too long, as far as they fit."""
        chosen = list(candidates[:1])
        longest = max((candidate.length for candidate in chosen), default=0)
        for candidate in candidates[1:]:
            longest = max(longest, candidate.length)
            waited = now - self._callers[candidate.item.caller].since
            if waited < self.max_queue_seconds or (len(chosen) + 1) * longest > self.max_batch_tokens:
                break
            chosen.append(candidate)
        return chosen

    def _fitting(self, chosen: Sequence[_Candidate], others: Sequence[_Candidate]) -> list[_Candidate]:
        """Return the others, sorted by length, that go with those chosen at the least padding."""
        added: list[_Candidate] = []
        count, longest = len(chosen), max((candidate.length for candidate in chosen), default=0)
        tokens = sum(candidate.length for candidate in chosen)
        unavoidable = count * longest - tokens
        above = bisect.bisect_right(others, longest, key=lambda candidate: candidate.length)
        below = above - 1
        while below >= 0 or above < len(others):
            padding_below = longest - others[below].length if below >= 0 else None
            padding_above = (others[above].length - longest) * count if above < len(others) else None
            if padding_above is None or (padding_below is not None and padding_below <= padding_above):
                candidate, below = others[below], below - 1
            else:
                candidate, above = others[above], above + 1
            count, longest, tokens = count + 1, max(longest, candidate.length), tokens + candidate.length
            if not self._is_worth_it(count * longest, padding=count * longest - tokens - unavoidable):
                break
            added.append(candidate)
        return added

    def _is_worth_it(self, padded: int, *, padding: int) -> bool:
        if padded > self.max_batch_tokens:
            return False
        return padded <= self._free_tokens or padding <= padded * PADDING_SHARE

    def _take(self, chosen: Sequence[_Candidate], now: float) -> Batch:
        served: dict[int, None] = {}
        for length, _, item in chosen:
            caller = self._callers[item.caller]
            del caller.ready[item.position]
            caller.ready_tokens -= length
            caller.waiting -= length
            self._ready_tokens -= length
            self._waiting_tokens -= length
            served[item.caller] = None
        for caller_id in served:
            caller = self._callers.pop(caller_id)
            caller.since = now
            if caller.waiting:  # a text that waits counts as one token at least
                self._callers[caller_id] = caller
        lengths = [candidate.length for candidate in chosen]
        padded = len(lengths) * max(lengths) if self._is_padded else sum(lengths)
        return Batch(tuple(candidate.item for candidate in chosen), sum(lengths), padded)


def _piece_of(caller: _Caller, texts: int, characters: int) -> Piece:
    """Return the caller's next texts: so many at most, and the last one begins within so many characters."""
    stop = caller.taken
    while stop < min(len(caller.sizes), caller.taken + texts) and characters > 0:
        characters -= caller.sizes[stop]
        stop += 1
    return Piece(caller.id, caller.taken, stop)


def _guess_tokens(characters: int) -> int:
    return characters // CHARACTERS_PER_TOKEN + 1
