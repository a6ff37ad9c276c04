"""Which source files were saved: watched from before the app is read, so that no save is missed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from watchfiles import awatch

_IGNORED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages"})
_QUIET_MS = 200
"""Files saved within this time of each other are one change."""


class SourceWatch:
    """The Python files that change below some folders while the `async with` block lasts."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._has_folders = bool(folders)
        self._changes = _changed_files(folders)
        self._next: asyncio.Task[list[Path]] | None = None

    async def changed(self) -> list[Path]:
        """Wait for files to change, and return what was saved together.

        Raises:
            OSError, RuntimeError: The system has no means to watch them.
        """
        changed = await self._start()
        self._next = None
        return changed

    async def __aenter__(self) -> Self:
        if self._has_folders:
            self._start()
        await asyncio.sleep(0)  # the watching begins in the first step of the task
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait([self._next])
            if not self._next.cancelled():
                self._next.exception()  # nobody waits for it any more
        await self._changes.aclose()

    def _start(self) -> asyncio.Task[list[Path]]:
        if self._next is None:
            self._next = asyncio.ensure_future(self._wait())
        return self._next

    async def _wait(self) -> list[Path]:
        return await anext(self._changes)


def is_source_file(path: Path, *, below: Path) -> bool:
    """True for a Python file in the folder that is not in a hidden or generated part of it."""
    if path.suffix != ".py" or not path.is_relative_to(below):
        return False
    parts = path.relative_to(below).parts
    return not any(part.startswith(".") or part in _IGNORED_FOLDERS for part in parts)


async def _changed_files(folders: Sequence[Path]) -> AsyncGenerator[list[Path], None]:
    def is_source(_change: object, name: str) -> bool:
        return any(is_source_file(Path(name), below=folder) for folder in folders)

    watching = awatch(*folders, watch_filter=is_source, debounce=_QUIET_MS)
    async with contextlib.aclosing(watching):
        async for changes in watching:
            yield sorted({Path(name) for _, name in changes})
