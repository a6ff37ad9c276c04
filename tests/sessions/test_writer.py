"""Whatever goes wrong in a write reaches the steps that wait for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flashkit.errors import StoreUnavailable
from flashkit.worker.sessions.records import Kind, Record
from flashkit.worker.sessions.sqlite_store import SqliteStore
from flashkit.worker.sessions.store import Lease
from flashkit.worker.sessions.writer import Writer


class BrokenStore(SqliteStore):
    """A store with a bug: its commits raise what no store should."""

    async def commit(self, *args: object, **kwargs: object) -> Lease:
        raise RuntimeError("a bug in the store")


class BrokenSender(BrokenStore):
    """A store whose quick way has a bug, too."""

    def commit_soon(self, *args: object) -> bool:
        raise TypeError("a bug in the quick way")


@pytest.mark.parametrize("kind", [BrokenStore, BrokenSender])
async def test_an_unforeseen_error_ends_every_waiting_step_and_the_session(
    tmp_path: Path, kind: type[BrokenStore]
) -> None:
    store = kind(tmp_path / "s.db", namespace="n", keyring=None, limits=None, budget_s=1.0)
    lease = await store.acquire("s", "w")
    assert isinstance(lease, Lease)
    lost = asyncio.Event()
    writer = Writer(store, lease, on_lost=lost.set)

    async with asyncio.timeout(5):
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="a bug in the store"):
                await writer.append(Record(Kind.RESULT, "step"))
    assert lost.is_set()
    await store.close()
