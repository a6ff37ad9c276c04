"""Which files were saved: watched from before the app is read, so that no save is missed.

Python files are code, `.env` and `.toml` files are settings that any code may read, and what an image is built from
is told apart, since no restart makes up for a new image. Other files are left alone, as are hidden and generated
folders.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import os
from collections.abc import AsyncGenerator, Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from watchfiles import Change, awatch

_IGNORED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages"})
_IMAGE_FILES = (
    "Dockerfile*", "*.dockerfile", "requirements*.txt", "constraints*.txt", "pyproject.toml", "setup.py", "setup.cfg",
    "uv.lock", "poetry.lock",
)  # fmt: skip
_SETTINGS_FILES = (".env", ".env.*", "*.toml")
_QUIET_MS = 200
"""Files saved within this time of each other are one change."""


class FileKind(StrEnum):
    """What a saved file is to the workers."""

    CODE = "code"
    """Restarts the endpoints that depend on it."""
    SETTINGS = "settings"
    """Restarts every endpoint of the project."""
    IMAGE = "image"
    """Needs a new image; nothing restarts."""


def kind_of(path: Path, *, below: Path) -> FileKind | None:
    """Return what the file is to the project in this folder, None where it is nothing."""
    if not path.is_relative_to(below):
        return None
    *folders, name = path.relative_to(below).parts or ("",)
    if any(folder.startswith(".") or folder in _IGNORED_FOLDERS for folder in folders):
        return None
    if _matches(name, _IMAGE_FILES):
        return FileKind.IMAGE
    if name.endswith(".py"):
        return None if name.startswith(".") else FileKind.CODE
    return FileKind.SETTINGS if _matches(name, _SETTINGS_FILES) else None


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


class SourceWatch:
    """The files that change below some folders while the `async with` block lasts."""

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


async def _changed_files(folders: Sequence[Path]) -> AsyncGenerator[list[Path], None]:
    def is_watched(change: Change, name: str) -> bool:
        is_new_folder = change is Change.added and Path(name).is_dir()
        return is_new_folder or any(kind_of(Path(name), below=folder) for folder in folders)

    watching = awatch(*folders, watch_filter=is_watched, debounce=_QUIET_MS)
    async with contextlib.aclosing(watching):
        async for changes in watching:
            names = {path for _, name in changes for path in _files_of(Path(name))}
            if files := sorted(path for path in names if any(kind_of(path, below=folder) for folder in folders)):
                yield files


def _files_of(path: Path) -> Iterable[Path]:
    """Return the path itself, or the files of a new folder: those that came with it have no events of their own."""
    if not path.is_dir():
        return (path,)
    return (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
