"""Which texts go into the next batch: rules one by one, and what must hold whatever happens."""

import itertools
import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flashkit.worker.engines.embedding.batching import (
    FULL_BATCHES,
    PADDING_SHARE,
    PIECE_TEXTS,
    TEXTS_OF_ONE_CALLER,
    Batcher,
    Item,
)


def add(batcher: Batcher, caller: int, *lengths: int, now: float = 0.0) -> None:
    """Bring a caller's texts in and tokenize them all."""
    batcher.add(caller, [length * 4 for length in lengths], now=now)
    while pieces := batcher.next_pieces():
        for piece in pieces:
            assert piece.caller == caller
            batcher.tokenized(piece, lengths[piece.start : piece.stop])


def batches(batcher: Batcher, now: float = 0.0) -> list[list[tuple[int, int]]]:
    """Take all batches out."""
    taken = []
    while (batch := batcher.next_batch(now)) is not None:
        taken.append([tuple(item) for item in batch.items])
    return taken


def test_behind_a_long_queue_little_is_padding_and_nobody_waits_for_ever():
    chance, numbers = random.Random(1), itertools.count()
    batcher = Batcher(max_batch_tokens=1024)
    now, tokens, padded, waits, came = 0.0, 0, 0, [], {}

    def come() -> None:
        number = next(numbers)
        came[number] = now
        add(batcher, number, chance.randint(110, 256), now=now)

    for _ in range(64):
        come()
    for _ in range(500):
        batch = batcher.next_batch(now)
        tokens, padded = tokens + batch.tokens, padded + batch.padded_tokens
        now += batch.padded_tokens
        batcher.wait_for_fits(batch.padded_tokens)
        waits += [now - came.pop(item.caller) for item in batch.items]
        for _ in batch.items:  # each caller asks again
            come()

    assert padded < 1.1 * tokens
    assert max(waits) < 2 * sum(waits) / len(waits)


def test_an_empty_queue_has_nothing_to_do():
    batcher = Batcher(max_batch_tokens=100)
    assert batcher.next_batch(0.0) is None
    assert batcher.next_pieces() == []
    assert not batcher.is_full
    assert not batcher.has_full_batch


def test_texts_of_several_callers_share_a_batch():
    batcher = Batcher(max_batch_tokens=100)
    for caller in range(3):
        add(batcher, caller, 20)
    assert batches(batcher) == [[(0, 0), (1, 0), (2, 0)]]


def test_a_batch_has_no_more_tokens_than_it_may_have_padding_included():
    batcher = Batcher(max_batch_tokens=100)
    add(batcher, 1, 30, 30, 30, 30)
    batch = batcher.next_batch(0.0)
    assert len(batch.items) == 3
    assert batch.padded_tokens == 90
    assert batch.tokens == 90


def test_a_text_that_is_longer_than_a_batch_has_one_of_its_own():
    batcher = Batcher(max_batch_tokens=100)
    add(batcher, 1, 500)
    add(batcher, 2, 10)
    assert batches(batcher) == [[(1, 0)], [(2, 0)]]


def test_texts_of_about_the_same_length_go_together():
    batcher = Batcher(max_batch_tokens=400)
    for caller, length in enumerate((100, 10, 98, 11, 97, 9)):
        add(batcher, caller, length)
    first, second = batches(batcher)
    assert {caller for caller, _ in first} == {0, 2, 4}
    assert {caller for caller, _ in second} == {1, 3, 5}


def test_the_caller_who_waits_longest_leads_whatever_fits_better():
    batcher = Batcher(max_batch_tokens=100)
    add(batcher, 1, 10)
    for caller in range(2, 9):
        add(batcher, caller, 50)
    assert (1, 0) in batches(batcher)[0]


def test_padding_that_costs_nothing_is_taken():
    batcher = Batcher(max_batch_tokens=1000, free_tokens=200)
    add(batcher, 1, 100)
    add(batcher, 2, 5)
    assert batches(batcher) == [[(1, 0), (2, 0)]]


def test_a_single_text_does_not_wait_for_another_callers_thousands():
    batcher = Batcher(max_batch_tokens=100)
    batcher.add(1, [40] * 10_000, now=0.0)
    for piece in batcher.next_pieces():
        batcher.tokenized(piece, [10] * (piece.stop - piece.start))
    batcher.next_batch(0.0)
    add_one = [Item(caller, 0) for caller in range(2, 7)]
    for caller in range(2, 7):
        batcher.add(caller, [40], now=1.0)
    for piece in batcher.next_pieces():
        batcher.tokenized(piece, [10] * (piece.stop - piece.start))
    batch = batcher.next_batch(1.0)
    assert set(add_one) <= set(batch.items)
    assert any(item.caller == 1 for item in batch.items)


def test_the_caller_with_thousands_is_served_while_single_texts_keep_coming():
    batcher = Batcher(max_batch_tokens=30)
    batcher.add(0, [40] * 1_000, now=0.0)
    served = 0
    for number in range(1, 200):
        for caller in (2 * number, 2 * number + 1):
            batcher.add(caller, [40], now=float(number))
        for piece in batcher.next_pieces():
            batcher.tokenized(piece, [10] * (piece.stop - piece.start))
        served += sum(item.caller == 0 for item in batcher.next_batch(float(number)).items)
    assert served >= 190  # one in each batch of three


def test_a_text_that_was_passed_over_too_long_comes_whatever_its_length():
    batcher = Batcher(max_batch_tokens=400, max_queue_seconds=5.0)
    add(batcher, 1, 100, now=0.0)
    add(batcher, 2, 10, now=0.0)
    add(batcher, 3, 100, now=4.0)
    patient = Batcher(max_batch_tokens=400, max_queue_seconds=60.0)
    add(patient, 1, 100, now=0.0)
    add(patient, 2, 10, now=0.0)
    add(patient, 3, 100, now=4.0)
    assert {item.caller for item in batcher.next_batch(6.0).items} == {1, 2, 3}
    assert {item.caller for item in patient.next_batch(6.0).items} == {1, 3}


def test_the_texts_of_a_caller_who_has_gone_are_in_no_batch():
    batcher = Batcher(max_batch_tokens=100)
    add(batcher, 1, 10, 10)
    batcher.add(2, [40], now=0.0)
    pieces = batcher.next_pieces()
    batcher.drop(1)
    batcher.drop(2)
    batcher.tokenized(pieces[0], [10])  # comes back too late
    assert batcher.next_batch(0.0) is None
    assert batcher.waiting_tokens == 0


def test_dropping_twice_is_no_mistake():
    batcher = Batcher(max_batch_tokens=100)
    add(batcher, 1, 10)
    batcher.drop(1)
    batcher.drop(1)
    assert batcher.waiting_tokens == 0


def test_texts_are_tokenized_not_much_further_ahead_than_batches_need():
    batcher = Batcher(max_batch_tokens=100)
    batcher.add(1, [40] * 10_000, now=0.0)
    taken = 0
    while pieces := batcher.next_pieces():
        for piece in pieces:
            taken += piece.stop - piece.start
            batcher.tokenized(piece, [10] * (piece.stop - piece.start))
    assert taken <= 2 * TEXTS_OF_ONE_CALLER


def test_a_piece_of_tokenizing_has_some_of_every_caller():
    batcher = Batcher(max_batch_tokens=10_000)
    batcher.add(1, [40] * 1_000, now=0.0)
    for caller in range(2, 50):
        batcher.add(caller, [40], now=0.0)
    pieces = batcher.next_pieces()
    assert {piece.caller for piece in pieces} == set(range(1, 50))
    assert sum(piece.stop - piece.start for piece in pieces) <= PIECE_TEXTS


def test_a_huge_text_is_tokenized_without_many_others_behind_it():
    batcher = Batcher(max_batch_tokens=100)
    batcher.add(1, [5_000_000], now=0.0)
    batcher.add(2, [40], now=0.0)
    assert [piece.caller for piece in batcher.next_pieces()] == [1]
    assert [piece.caller for piece in batcher.next_pieces()] == [2]


def test_it_is_full_when_many_batches_wait():
    batcher = Batcher(max_batch_tokens=100)
    batcher.add(1, [400] * FULL_BATCHES, now=0.0)
    assert batcher.is_full
    assert not batcher.has_full_batch
    batcher.drop(1)
    assert not batcher.is_full


class Queue(RuleBasedStateMachine):
    """Callers come and go, texts are tokenized and taken, in any order."""

    is_padded = True

    def __init__(self) -> None:
        super().__init__()
        self.batcher = Batcher(max_batch_tokens=64, max_queue_seconds=10.0, free_tokens=16, is_padded=self.is_padded)
        self.now = 0.0
        self.next_caller = 0
        self.untokenized: dict[int, dict[int, int]] = {}
        self.waiting: dict[int, dict[int, int]] = {}
        self.out: list = []
        self.lengths: dict[int, list[int]] = {}
        self.passed: dict[int, int] = {}

    @rule(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=100))
    def come(self, lengths):
        caller, self.next_caller = self.next_caller, self.next_caller + 1
        self.lengths[caller] = lengths
        self.untokenized[caller] = dict(enumerate(lengths))
        self.waiting[caller] = {}
        self.batcher.add(caller, [length * 3 for length in lengths], now=self.now)

    @rule()
    def start_tokenizing(self):
        for piece in self.batcher.next_pieces():
            assert piece.caller in self.untokenized
            assert piece.start < piece.stop
            self.out.append(piece)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def end_tokenizing(self, data):
        piece = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        lengths = self.lengths[piece.caller][piece.start : piece.stop]
        self.batcher.tokenized(piece, lengths)
        if piece.caller in self.waiting:
            for index in range(piece.start, piece.stop):
                self.waiting[piece.caller][index] = self.untokenized[piece.caller].pop(index)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def go_away(self, data):
        caller = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[caller], self.untokenized[caller]
        self.passed.pop(caller, None)
        self.batcher.drop(caller)

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def take_batch(self):
        there = {caller for caller, texts in self.waiting.items() if texts}
        batch = self.batcher.next_batch(self.now)
        if batch is None:
            assert not there
            return
        taken = [self.waiting[item.caller].pop(item.position) for item in batch.items]  # each text once, and only here
        assert batch.tokens == sum(taken)
        assert batch.padded_tokens == (max(taken) * len(taken) if self.is_padded else sum(taken))
        assert len(batch.items) == 1 or batch.padded_tokens <= 64
        for caller in there:
            was_served = any(item.caller == caller for item in batch.items)
            self.passed[caller] = 0 if was_served else self.passed.get(caller, 0) + 1
            assert self.passed[caller] <= self.next_caller  # everybody's turn comes
        for caller in [caller for caller in self.waiting if not self.waiting[caller] and not self.untokenized[caller]]:
            del self.waiting[caller], self.untokenized[caller]
            self.passed.pop(caller, None)

    @invariant()
    def nothing_is_counted_that_is_not_there(self):
        if not self.waiting:
            assert self.batcher.waiting_tokens == 0
        ready = sum(sum(texts.values()) for texts in self.waiting.values())
        assert self.batcher.has_full_batch is (ready >= 64)


Queue.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestQueue = Queue.TestCase


class UnpaddedQueue(Queue):
    """The same where nothing is padded."""

    is_padded = False


UnpaddedQueue.TestCase.settings = Queue.TestCase.settings
TestUnpaddedQueue = UnpaddedQueue.TestCase


def test_where_nothing_is_padded_texts_go_in_the_order_in_which_they_came():
    batcher = Batcher(max_batch_tokens=100, is_padded=False)
    for caller, length in enumerate((10, 70, 20, 90, 5, 200, 1)):
        add(batcher, caller, length)
    assert batches(batcher) == [[(0, 0), (1, 0), (2, 0)], [(3, 0), (4, 0)], [(5, 0)], [(6, 0)]]


def test_where_nothing_is_padded_a_caller_with_many_texts_takes_turns_too():
    batcher = Batcher(max_batch_tokens=40, is_padded=False)
    add(batcher, 0, *[10] * 8)
    add(batcher, 1, 10, 10)
    assert batches(batcher) == [[(0, 0), (1, 0), (0, 1), (1, 1)], [(0, 2), (0, 3), (0, 4), (0, 5)], [(0, 6), (0, 7)]]


def test_little_of_a_batch_is_padding_when_texts_of_all_lengths_wait():
    batcher = Batcher(max_batch_tokens=2_000)
    for caller in range(200):
        add(batcher, caller, 10 + (caller * 37) % 240)
    padded = tokens = 0
    while (batch := batcher.next_batch(0.0)) is not None:
        padded, tokens = padded + batch.padded_tokens, tokens + batch.tokens
    assert (padded - tokens) / padded <= PADDING_SHARE
