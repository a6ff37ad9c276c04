"""How far a download, an upload or a check is: a bar on a terminal, lines of the log in a worker."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol, Self

log = logging.getLogger("flashkit.weights")

_STEP: Final = 0.1
"""A line for every tenth,"""
_QUIET_SECONDS: Final = 10.0
"""and after so long without one,"""
_CALM_SECONDS: Final = 2.0
"""but never more often than this."""
_UNITS: Final = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB"))


class Progress(Protocol):
    """Where work that takes long says how far it is. Entered once; `advance` may be called by any thread."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *args: object) -> None: ...
    def begin(self, what: str, *, total: int, done: int = 0) -> None:
        """Say what is being done, and how many bytes there are."""

    def advance(self, count: int) -> None:
        """Say that so many bytes more are done; fewer than none takes back what has to be done again."""


class SilentProgress(AbstractContextManager["SilentProgress"]):
    """Says nothing."""

    def begin(self, what: str, *, total: int, done: int = 0) -> None:
        """Do nothing."""

    def advance(self, count: int) -> None:
        """Do nothing."""

    def __exit__(self, *args: object) -> None:
        """Do nothing."""


class LogProgress:
    """Writes a line to the log for every tenth, and after ten seconds without one.

    Args:
        write: Takes a line, and the numbers in it.
        clock: Seconds that only grow.
    """

    def __init__(
        self, write: Callable[[str, dict[str, Any]], None] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write or _write_to_log
        self._clock = clock
        self._lock = threading.Lock()  # several threads advance; a tenth is told once
        self._what, self._total, self._first = "", 0, 0
        self._done = self._told = 0
        self._began_at = self._told_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        if failure[0] is None and self._what:
            self._tell(self._clock())

    def begin(self, what: str, *, total: int, done: int = 0) -> None:
        """Say what is being done, and how many bytes there are."""
        self._what, self._total, self._first = what, total, done
        self._done = self._told = done
        self._began_at = self._told_at = self._clock()
        resumed = f", {format_size(done)} of them from before" if done else ""
        self._write(f"{what}: {format_size(total)}{resumed}", self._numbers())

    def advance(self, count: int) -> None:
        """Say that so many bytes more are done."""
        with self._lock:
            self._done += count
            now = self._clock()
            quiet = now - self._told_at
            is_far = self._done - self._told >= _STEP * self._total
            if quiet >= (_CALM_SECONDS if is_far else _QUIET_SECONDS) and self._done < self._total:
                self._tell(now)

    def _tell(self, now: float) -> None:
        self._told, self._told_at = self._done, now
        seconds = max(now - self._began_at, 1e-3)
        rate = max(self._done - self._first, 0) / seconds
        text = f"{self._what}: {percent(self._done, self._total)}, {format_size(self._done)}, {format_size(rate)}/s"
        left = (self._total - self._done) / rate if rate else 0.0
        ending = f", {left:.0f} s left" if left > 0 else f", took {seconds:.1f} s"
        self._write(text + ending, {**self._numbers(), "bytes_per_second": round(rate)})

    def _numbers(self) -> dict[str, Any]:
        return {"done_bytes": self._done, "total_bytes": self._total}


class BarProgress:
    """Draws a bar on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bar
        from rich.table import Column

        self._bar = Bar(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            DownloadColumn(table_column=Column(no_wrap=True)),
            TransferSpeedColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=Console(stderr=True),
        )
        self._task: Any = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._bar.stop()

    def begin(self, what: str, *, total: int, done: int = 0) -> None:
        """Say what is being done, and how many bytes there are."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=total, completed=done)

    def advance(self, count: int) -> None:
        """Say that so many bytes more are done."""
        self._bar.advance(self._task, count)


def make_progress() -> Progress:
    """Return a bar where a person looks on, lines of the log elsewhere."""
    if sys.stderr.isatty():
        try:
            return BarProgress()
        except ModuleNotFoundError:  # rich comes with the extra `dev`
            pass
    return LogProgress()


def _write_to_log(text: str, numbers: dict[str, Any]) -> None:
    log.info("%s", text, extra={"event": "weights_progress", **numbers})


def percent(done: float, total: float) -> str:
    """Return a share in words: 42 %."""
    return f"{100 * done / total:.0f} %" if total else "100 %"


def format_size(size: float) -> str:
    """Return a size in decimal units, as disks, networks and price lists count: 812 B, 16.1 GB."""
    for factor, unit in _UNITS:
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} B"
