"""Where `flashkit dev` keeps sessions: in the store that was named, or in one below the project's folder."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from flashkit.settings import Settings

if TYPE_CHECKING:
    from flashkit.worker.sessions.embedded import EmbeddedServer
    from flashkit.worker.sessions.store import StoreReport

SQLITE = "sqlite:///"
_FILE = "sessions.db"
_BORROWED = "another flashkit dev in this folder uses the same store, so both see the same sessions"


@dataclass(frozen=True, slots=True)
class DevStore:
    """An open store."""

    url: str
    namespace: str
    description: str
    """For the banner, without a password."""
    warnings: tuple[str, ...] = ()
    server_pid: int | None = None
    """Of a server that is ours alone."""

    def freeze(self, is_frozen: bool) -> None:  # noqa: FBT001 - what the emulator calls
        """Make our own server stop answering, or answer again."""
        if self.server_pid is not None:
            os.kill(self.server_pid, signal.SIGSTOP if is_frozen else signal.SIGCONT)


@contextlib.asynccontextmanager
async def open_dev_store(folder: Path, state_dir: Path, *, named: str | None) -> AsyncIterator[DevStore]:
    """Keep a store for as long as the block lasts.

    Without a name it is a Redis or Valkey of our own, so that sessions meet the same scripts and failures as
    in production; where none is installed, SQLite.

    Args:
        folder: Relative paths in URLs begin here.
        state_dir: Where our own store goes.
        named: URL from the command line; else FLASHKIT_STATE is looked at.

    Raises:
        ConfigurationError: The store would lose sessions, or is none.
        StoreUnavailable: It does not answer.
    """
    settings = Settings.from_environment()
    namespace = settings.state_namespace
    if url := named or (settings.state_url if settings.is_state_shared else None):
        url = with_absolute_path(url, folder)
        from flashkit.worker.sessions.store import without_password

        report = await _check(url, namespace)
        yield DevStore(url, namespace, f"{report.server} at {without_password(url)}", report.warnings)
    elif server := _find_server(state_dir / "redis"):
        async with server:
            report = await _check(server.url, namespace)
            warnings = (_BORROWED,) if server.is_borrowed else ()
            description = f"{report.server} of its own, {state_dir.name}/redis"
            yield DevStore(server.url, namespace, description, warnings, None if server.is_borrowed else server.pid)
    else:
        yield DevStore(f"{SQLITE}{state_dir / _FILE}", namespace, f"sqlite, {state_dir.name}/{_FILE}")


def with_absolute_path(url: str, folder: Path) -> str:
    """Return the URL so that workers, which run in the folders of their apps, find the same file."""
    path = Path(url.removeprefix(SQLITE))
    return f"{SQLITE}{folder / path}" if url.startswith(SQLITE) and not path.is_absolute() else url


def _find_server(folder: Path) -> EmbeddedServer | None:
    if find_spec("redis") is None:
        return None
    from flashkit.worker.sessions.embedded import EmbeddedServer, find_server

    binary = find_server()
    return None if binary is None else EmbeddedServer(folder, binary=binary, syncs_every_write=True)


async def _check(url: str, namespace: str) -> StoreReport:
    from flashkit.worker.sessions.store import open_store

    store = open_store(url, namespace=namespace)
    try:
        return await store.check()
    finally:
        await store.close()
