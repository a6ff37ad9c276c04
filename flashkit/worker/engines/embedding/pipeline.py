"""Many callers, one model: texts are tokenized in one thread, batches run in another, the loop keeps the books.

The loop owns the `Batcher` and everything else that changes; the threads get a piece of work and give a result back, in
one call to the loop for each piece and each batch. Nothing waits while the model is idle: what comes first starts at
once, and what comes while a batch runs is in the next one. Callers that come in the same turn of the loop, as jobs
do that were taken together, share a batch.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flashkit.errors import EngineDied, FlashkitError, InputError
from flashkit.worker.engines.embedding.batch_run import Computed, run_batch
from flashkit.worker.engines.embedding.batching import Batch, Batcher, Piece
from flashkit.worker.engines.embedding.model import Model
from flashkit.worker.engines.embedding.tokens import Input, Tokenizer, Tokens

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_SHARE_OF_NEWEST: Final = 0.2
"""How much the last batch counts in the mean of how long one takes."""


class Rows(NamedTuple):
    """What a caller gets: one row for each of its texts."""

    values: npt.NDArray[np.float32]
    tokens: tuple[int, ...]
    """Of each text, as the model read it."""
    truncated: tuple[int, ...]
    """Indexes of the texts whose end was cut off."""


@dataclass(slots=True)
class _Call:
    inputs: Sequence[Input]
    done: asyncio.Future[Rows]
    values: npt.NDArray[np.float32]
    missing: int
    tokens: dict[int, Tokens] = field(default_factory=dict)
    """Of texts that wait for a batch, or are in one."""
    counts: list[int] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Progress:
    """What has been done, for metrics, the watchdog and benchmarks."""

    batches: int = 0
    texts: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    seconds: float = 0.0
    """That the model computed."""


class Pipeline:
    """Runs the texts of all callers through one model."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        model: Model,
        batcher: Batcher,
        *,
        thread: ThreadPoolExecutor,
        max_queue_seconds: float | None,
    ) -> None:
        """Begin, on the loop that will ask.

        Args:
            tokenizer: Used in a thread of its own.
            model: Used in `thread`.
            batcher: Empty.
            thread: One, that in which the model was loaded; it ends with the pipeline.
            max_queue_seconds: See `Batcher`; None to let it follow how long batches take.
        """
        self._tokenizer = tokenizer
        self._model = model
        self._batcher = batcher
        self._max_queue_seconds = max_queue_seconds
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count()
        self._calls: dict[int, _Call] = {}
        self._is_woken = False
        self._is_tokenizing = False
        self._batches_running = 0
        self._mean_seconds = 0.0
        self._threads = {
            "tokens": ThreadPoolExecutor(1, thread_name_prefix="embedding-tokens"),
            "model": thread,
        }
        self.progress = Progress()
        self.death: EngineDied | None = None

    @property
    def is_busy(self) -> bool:
        """True while somebody waits for rows."""
        return bool(self._calls)

    @property
    def is_full(self) -> bool:
        """True when enough work waits."""
        return self._batcher.is_full

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch, at most; fewer than at first where memory ran out."""
        return self._batcher.max_batch_tokens

    async def run(self, inputs: Sequence[Input]) -> Rows:
        """Return the rows of some texts, checked ones. Cancelling it takes those out that are in no batch yet.

        Raises:
            InputError: One of them has no tokens or too many; the message names it.
            EngineError: The model failed on one of them.
            EngineDied: The model can run no more.
        """
        import numpy as np

        if self.death is not None:
            raise self.death
        values: npt.NDArray[np.float32] = np.empty((len(inputs), self._model.dimensions), dtype=np.float32)
        call = _Call(inputs, self._loop.create_future(), values, len(inputs), counts=[0] * len(inputs))
        number = next(self._ids)
        self._calls[number] = call
        self._batcher.add(number, [_size(given) for given in inputs], now=time.monotonic())
        self._wake()
        try:
            return await call.done
        finally:
            self._forget(number)

    async def close(self) -> None:
        """Let running work end, and fail whoever still waits."""
        self._die(EngineDied("the engine was closed", details={"retryable": True}))
        for thread in self._threads.values():
            thread.shutdown(wait=False, cancel_futures=True)

    def _wake(self) -> None:
        """Look for work when everybody who is ready in this turn of the loop has come."""
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon(self._start_work)

    def _start_work(self) -> None:
        self._is_woken = False
        if self.death is not None:
            return
        if not self._is_tokenizing and (pieces := self._batcher.next_pieces()):
            self._is_tokenizing = True
            self._submit("tokens", self._tokenize(pieces), partial(self._tokenized, pieces))
        # One full batch may wait in the model's thread, so that it goes on without asking; another one may not yet be
        # as full as it will be.
        while self._batches_running == 0 or (self._batches_running == 1 and self._batcher.has_full_batch):
            if (batch := self._batcher.next_batch(time.monotonic())) is None:
                return
            self._batches_running += 1
            self._submit("model", self._compute(batch), partial(self._computed, batch))

    def _submit(self, thread: str, work: Callable[[], Any], then: Callable[[Future[Any]], None]) -> None:
        def back_on_loop(future: Future[Any]) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(then, future)

        self._threads[thread].submit(work).add_done_callback(back_on_loop)

    def _tokenize(self, pieces: Sequence[Piece]) -> Callable[[], list[Tokens | InputError]]:
        inputs = [given for piece in pieces for given in self._calls[piece.caller].inputs[piece.start : piece.stop]]
        return lambda: self._tokenizer.encode(inputs)

    def _tokenized(self, pieces: Sequence[Piece], future: Future[list[Tokens | InputError]]) -> None:
        self._is_tokenizing = False
        if (encoded := self._result(future)) is None:
            return
        stream = iter(encoded)
        for piece in pieces:
            self._note_tokens(piece, list(itertools.islice(stream, piece.stop - piece.start)))
        self._start_work()

    def _note_tokens(self, piece: Piece, encoded: Sequence[Tokens | InputError]) -> None:
        call = self._calls.get(piece.caller)
        if call is None:
            return
        lengths = []
        for index, tokens in enumerate(encoded, piece.start):
            if isinstance(tokens, InputError):
                self._fail(piece.caller, _at(index, tokens))
                return
            call.tokens[index] = tokens
            call.counts[index] = len(tokens.ids)
            if tokens.is_truncated:
                call.truncated.append(index)
            lengths.append(len(tokens.ids))
        self._batcher.tokenized(piece, lengths)

    def _compute(self, batch: Batch) -> Callable[[], tuple[Computed, float]]:
        tokens = [self._calls[item.caller].tokens.pop(item.position) for item in batch.items]

        def compute() -> tuple[Computed, float]:
            started = time.perf_counter()
            return run_batch(self._model, tokens), time.perf_counter() - started

        return compute

    def _computed(self, batch: Batch, future: Future[tuple[Computed, float]]) -> None:
        self._batches_running -= 1
        if (result := self._result(future)) is None:
            return
        computed, seconds = result
        self._note_batch(batch, computed, seconds)
        for row, (caller, index) in enumerate(batch.items):
            if (call := self._calls.get(caller)) is None:
                continue
            if (failure := computed.failures.get(row)) is not None:
                self._fail(caller, _at(index, failure))
                continue
            call.values[index] = computed.rows[row]
            call.missing -= 1
            if not call.missing and not call.done.done():
                call.done.set_result(Rows(call.values, tuple(call.counts), tuple(sorted(call.truncated))))
        self._start_work()

    def _note_batch(self, batch: Batch, computed: Computed, seconds: float) -> None:
        progress = self.progress
        progress.batches += 1
        progress.texts += len(batch.items)
        progress.tokens += batch.tokens
        progress.padded_tokens += batch.padded_tokens
        progress.seconds += seconds
        if computed.fitting_tokens:
            self._batcher.max_batch_tokens = min(self._batcher.max_batch_tokens, computed.fitting_tokens)
        self._mean_seconds += (seconds - self._mean_seconds) * (_SHARE_OF_NEWEST if self._mean_seconds else 1.0)
        if self._max_queue_seconds is None:
            self._batcher.wait_for_fits(self._mean_seconds)

    def _result(self, future: Future[Any]) -> Any:
        """Return what a thread gave, or None when the engine is dead."""
        if future.cancelled() or self.death is not None:
            return None
        if (failure := future.exception()) is None:
            return future.result()
        died = failure if isinstance(failure, EngineDied) else _broken(failure)
        self._die(died)
        return None

    def _die(self, death: EngineDied) -> None:
        if self.death is None:
            self.death = death
        for number in list(self._calls):
            self._fail(number, self.death)

    def _fail(self, number: int, error: FlashkitError) -> None:
        call = self._calls[number]
        self._batcher.drop(number)
        if not call.done.done():
            call.done.set_exception(error)

    def _forget(self, number: int) -> None:
        self._batcher.drop(number)
        self._calls.pop(number, None)


def _size(given: Input) -> int:
    """Return how long an input is, in characters as far as it is text."""
    if isinstance(given, str):
        return len(given)
    return len(given[0]) + len(given[1]) if isinstance(given[0], str) and isinstance(given[1], str) else 4 * len(given)


def _at(index: int, error: Any) -> FlashkitError:
    """Return the error with the index of the text that it is about."""
    report = error.report
    kind: type[FlashkitError] = type(error)
    details = {**report.details, "index": index}
    return kind(report.message.replace("the text", f"text {index}", 1), hint=report.hint, details=details)


def _broken(failure: BaseException) -> EngineDied:
    died = EngineDied(
        f"the engine failed: {type(failure).__name__}: {failure}",
        hint="the worker is replaced; send the request again",
        details={"retryable": True},
    )
    died.__cause__ = failure
    return died
