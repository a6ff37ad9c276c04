"""Reading weights into the page cache while Python imports: a cold disk and a busy interpreter at the same time.

A worker's first seconds go into importing torch and the like, one thread at a full core, while the disk waits; then
the model is loaded, often by mapping files into memory, which asks a cold disk for a few pages at a time. Threads
that read the files from one end to the other in the meantime, letting go of the interpreter's lock as they read, let
the load find them in memory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flashkit.worker.machine import free_memory
from flashkit.worker.weights.folders import WEIGHT_SUFFIXES, walk

log = logging.getLogger("flashkit.weights")

_PIECE_BYTES: Final = 8 << 20
_THREADS: Final = 4
_SHARE_OF_MEMORY: Final = 0.5
"""Of the memory that is free: pages beyond it would push each other out again."""


@dataclass(frozen=True, slots=True)
class _Piece:
    path: Path
    start: int
    length: int


class ReadAhead:
    """Files that are being read. They are read whether anybody waits or not, and it can be left alone."""

    def __init__(self, pieces: list[_Piece], threads: int) -> None:
        self.total_bytes = sum(piece.length for piece in pieces)
        self._pieces: queue.SimpleQueue[_Piece] = queue.SimpleQueue()
        for piece in pieces:
            self._pieces.put(piece)
        self._read: list[int] = []
        self._began_at = time.monotonic()
        self._is_stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name="weights-read-ahead", daemon=True)
            for _ in range(min(threads, len(pieces)))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def read_bytes(self) -> int:
        """Bytes that have been read so far."""
        return sum(self._read)

    @property
    def is_done(self) -> bool:
        """True when nothing more will be read."""
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Read no further: what is left is not needed, or memory is short."""
        self._is_stopped.set()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait until everything is read, and say whether it is."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return self.is_done and self.read_bytes >= self.total_bytes

    def _work(self) -> None:
        buffer = memoryview(bytearray(_PIECE_BYTES))
        with contextlib.suppress(queue.Empty, OSError):  # who loads the file will say what is wrong with it
            while not self._is_stopped.is_set():
                self._read.append(_read_piece(self._pieces.get_nowait(), buffer))
        if self._pieces.empty() and self.read_bytes >= self.total_bytes:
            seconds = time.monotonic() - self._began_at
            log.debug("read %d bytes ahead in %.2f s", self.read_bytes, seconds)


def read_ahead(folder: Path, *, threads: int = _THREADS, limit_bytes: int | None = None) -> ReadAhead:
    """Start reading the weights of a folder into the page cache, and return at once.

    Args:
        folder: The weights.
        threads: Pieces that are read at the same time.
        limit_bytes: Read no more than this; by default half of the memory that is free.
    """
    limit = free_memory() * _SHARE_OF_MEMORY if limit_bytes is None else limit_bytes
    return ReadAhead(list(_pieces(folder, limit)), threads)


def _pieces(folder: Path, limit: float) -> Iterator[_Piece]:
    """Yield what is to be read in the order in which loaders go through files."""
    left = limit
    for path in walk(folder):
        if not path.name.endswith(WEIGHT_SUFFIXES):
            continue
        with contextlib.suppress(OSError):
            size = path.stat().st_size
            for start in range(0, size, _PIECE_BYTES):
                length = min(_PIECE_BYTES, size - start)
                if length > left:
                    return
                left -= length
                yield _Piece(path, start, length)


def _read_piece(piece: _Piece, buffer: memoryview) -> int:
    descriptor = os.open(piece.path, os.O_RDONLY)
    try:
        position, end = piece.start, piece.start + piece.length
        while position < end:
            count = os.preadv(descriptor, [buffer[: end - position]], position)
            if not count:
                break
            position += count
        return position - piece.start
    finally:
        os.close(descriptor)
