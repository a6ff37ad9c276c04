"""A process that was stopped in the middle of writing to a SQLite file locks everybody out of it, until it goes on."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from flashkit.errors import StoreUnavailable
from flashkit.worker.sessions.store import Lease

STOPS_IN_THE_MIDDLE = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
db.execute("DELETE FROM claim")
print("in the middle", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
db.execute("ROLLBACK")
"""


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/sessions.db"


@pytest.fixture
async def stopped(tmp_path, make_store, url) -> Iterator[subprocess.Popen]:
    """Another worker's process, which has the file."""
    await make_store(url).check()
    command = [sys.executable, "-c", STOPS_IN_THE_MIDDLE, str(tmp_path / "sessions.db")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "in the middle\n"
        yield process
    finally:
        process.kill()
        process.communicate()


async def test_who_wants_to_write_is_told_so_within_the_budget_however_many_they_are(make_store, url, stopped):
    store = make_store(url, budget_s=0.5)
    async with asyncio.timeout(10):  # one after the other they would take twenty seconds
        refused = await asyncio.gather(*(store.acquire(f"s{n}", "w") for n in range(40)), return_exceptions=True)
    for error in refused:
        assert isinstance(error, StoreUnavailable)
        assert "could not be used within 0.5 s: database is locked" in str(error)
        assert "was stopped in the middle of a write" in str(error)


async def test_the_check_at_start_says_the_same(make_store, url, stopped):
    with pytest.raises(StoreUnavailable, match=r"within 0.2 s: database is locked"):
        await make_store(url).check(budget_s=0.2)


async def test_who_only_reads_is_not_held_up(make_store, url, stopped):
    assert await make_store(url, budget_s=0.5).head("s") is None


async def test_once_the_process_goes_on_the_store_works_again(make_store, url, stopped):
    store = make_store(url, budget_s=30)
    waiting = asyncio.create_task(store.acquire("s", "w"))
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done
    stopped.send_signal(signal.SIGCONT)
    assert isinstance(await waiting, Lease)
