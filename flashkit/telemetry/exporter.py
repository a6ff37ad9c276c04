"""Brings spans to a receiver, from a thread of its own: a job never waits for it, whatever becomes of the receiver.

Spans wait in a queue that is bounded: when it is full, new ones are dropped and counted. A span that is open for longer
than a moment is told too, so that what a killed process was doing is known: its receiver knows the two by their id.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from enum import Enum, auto
from typing import Final, Protocol

from flashkit.telemetry.spans import Span

log = logging.getLogger(__name__)

QUEUE_LIMIT: Final = 8_192
"""Spans that wait to be sent; one more is dropped."""
BATCH_LIMIT: Final = 512
TICK_SECONDS: Final = 0.1
"""How often open spans are looked at: one is told at most so long after it has been open for a moment."""
_TICKS_TO_GATHER: Final = 10
"""Ended spans wait for others, unless something is sent anyway: each request costs more than the spans in it."""
_ENOUGH: Final = 128
LONGEST_BACKOFF_SECONDS: Final = 30.0
_FLUSH_SECONDS: Final = 2.0


class Delivery(Enum):
    """What became of some spans."""

    SENT = auto()
    LATER = auto()
    """The receiver could not take them now."""
    REFUSED = auto()
    """It will not take them."""


class Sender(Protocol):
    """The way to a receiver. Used by one thread."""

    name: str
    """For people."""
    tells_open_after_s: float
    """How long a span is open before it is told."""

    def send(self, spans: Sequence[Span]) -> Delivery:
        """Send spans, open ones too; may take its time."""

    def close(self) -> None:
        """Close connections; the next spans open them again."""


class Exporter:
    """Takes ended and open spans, and sends them in the background."""

    def __init__(
        self,
        sender: Sender,
        *,
        queue_limit: int = QUEUE_LIMIT,
        tick_s: float = TICK_SECONDS,
        first_backoff_s: float = 0.5,
    ) -> None:
        self.dropped = 0
        """Spans that nobody will see."""
        self._sender = sender
        self._queue_limit = queue_limit
        self._tick_s = tick_s
        self._first_backoff_s = first_backoff_s
        self._ended: deque[Span] = deque()
        self._open: dict[str, Span] = {}
        self._told: set[str] = set()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()  # of two threads with a first span, one starts the exporter's
        self._stopping = threading.Event()
        self._has_complained = False

    def opened(self, span: Span) -> None:
        """Take note of a span that begins."""
        if len(self._open) < self._queue_limit:
            self._open[span.span_id] = span
        if self._thread is None:
            self._start()

    def ended(self, span: Span) -> None:
        """Take a span that has ended."""
        self._open.pop(span.span_id, None)
        if len(self._ended) < self._queue_limit:
            self._ended.append(span)
        else:
            self._drop(1)

    def close(self, timeout_s: float = _FLUSH_SECONDS) -> None:
        """Send what there is, for so long at most, and end the thread."""
        self._stopping.set()
        thread, self._thread = self._thread, None
        atexit.unregister(self.close)
        if thread is not None and thread.is_alive():
            thread.join(timeout_s)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._stopping = threading.Event()
                self._thread = threading.Thread(target=self._run, name="flashkit traces", daemon=True)
                self._thread.start()
                atexit.register(self.close)

    def _run(self) -> None:
        stopping, backoff, ticks = self._stopping, 0.0, 0
        while not stopping.wait(max(self._tick_s, backoff)):
            ticks += 1
            overdue = self._overdue()
            is_due = overdue or len(self._ended) >= _ENOUGH or backoff or ticks >= _TICKS_TO_GATHER
            if not is_due:
                continue
            ticks = 0
            try:
                backoff = self._send_all(backoff, overdue)
            except Exception:
                log.warning("spans could not be sent", exc_info=not self._has_complained)
                self._has_complained = True
                backoff = LONGEST_BACKOFF_SECONDS
        try:
            self._send_all(0.0, ())
        finally:
            self._sender.close()

    def _send_all(self, backoff: float, overdue: Sequence[Span]) -> float:
        """Send what waits; return how long to wait before the next try."""
        if overdue and self._sender.send(overdue[:BATCH_LIMIT]) is Delivery.LATER:
            self._told.difference_update(span.span_id for span in overdue)
        while self._ended:
            batch = [self._ended[index] for index in range(min(BATCH_LIMIT, len(self._ended)))]
            delivery = self._sender.send(batch)
            if delivery is Delivery.LATER:
                self._complain()
                return min(LONGEST_BACKOFF_SECONDS, max(self._first_backoff_s, backoff * 2))
            for _ in batch:
                self._ended.popleft()
            if delivery is Delivery.REFUSED:
                self._drop(len(batch))
        return 0.0

    def _overdue(self) -> list[Span]:
        """Return the spans that have been open for a while, each once."""
        spans = list(self._open.values())
        self._told.intersection_update({span.span_id for span in spans})
        since = time.time_ns() - int(self._sender.tells_open_after_s * 1e9)
        overdue = [span for span in spans if span.start_ns <= since and span.span_id not in self._told]
        self._told.update(span.span_id for span in overdue)
        return overdue

    def _drop(self, count: int) -> None:
        self.dropped += count
        self._complain()

    def _complain(self) -> None:
        if not self._has_complained:
            self._has_complained = True
            log.warning("%s does not take spans now; jobs go on, and what finds no room is dropped", self._sender.name)


class Exporters:
    """Several exporters as one: none of them waits for another."""

    def __init__(self, exporters: Sequence[Exporter]) -> None:
        self._all = tuple(exporters)

    @property
    def dropped(self) -> int:
        """Spans that did not reach all receivers."""
        return sum(exporter.dropped for exporter in self._all)

    def opened(self, span: Span) -> None:
        """Take note of a span that begins."""
        for exporter in self._all:
            exporter.opened(span)

    def ended(self, span: Span) -> None:
        """Take a span that has ended."""
        for exporter in self._all:
            exporter.ended(span)

    def close(self) -> None:
        """Send what there is, and end the threads."""
        for exporter in self._all:
            exporter.close()
