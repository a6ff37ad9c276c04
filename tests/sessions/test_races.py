"""Several worker processes want one session: at any time the writes of at most one are accepted (rows 4, 5, 7)."""

import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flashkit.errors import StoreUnavailable
from flashkit.worker.sessions.store import Lease

WORKER = Path(__file__).parent / "race_worker.py"
ROOT = Path(__file__).parent.parent.parent


def start_worker(url, namespace, name, *, tries, ttl_s):
    command = [sys.executable, str(WORKER), url, namespace, name, str(tries), str(ttl_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})


async def finish(worker):
    out, _ = await asyncio.to_thread(worker.communicate)
    assert worker.returncode == 0
    return [json.loads(line) for line in out.splitlines()]


async def test_racing_workers_leave_a_journal_of_exactly_what_was_acknowledged(store, store_url, namespace):
    workers = [start_worker(store_url, namespace, f"w{n}", tries=25, ttl_s=0.03) for n in range(4)]
    held = [lease for worker in workers for lease in await finish(worker)]
    acknowledged = [(int(seq), key, lease["fence"]) for lease in held for seq, key in lease["acknowledged"].items()]
    records = (await store.load("s")).records
    assert [(record.seq, record.key, int(record.output)) for record in records] == sorted(acknowledged)
    fences = [int(record.output) for record in records]
    assert fences == sorted(fences)  # no superseded worker ever wrote again
    assert len({lease["fence"] for lease in held}) == len(held)  # every lease had a fence of its own
    assert any(lease["fenced"] for lease in held) or len(held) < 5


async def take_over_from(worker, store):
    """Stop a worker where it is and take its session once its lease is over.

    One that was stopped in the middle of a transaction of SQLite's locks everybody out of the file: it goes on for
    a moment and is stopped somewhere else.
    """
    async with asyncio.timeout(30):
        while True:
            worker.send_signal(signal.SIGSTOP)
            with contextlib.suppress(StoreUnavailable):
                return await take_over(store)
            worker.send_signal(signal.SIGCONT)
            await asyncio.sleep(random.uniform(0.001, 0.01))


async def take_over(store):
    while not isinstance(lease := await store.acquire("s", "heir", ttl_s=60, max_attempts=1000), Lease):
        await asyncio.sleep(0.01)
    return lease


@pytest.mark.parametrize("again", range(2))
async def test_a_worker_that_was_stopped_past_its_lease_is_fenced_when_it_goes_on(
    make_store, store, store_url, namespace, again
):
    worker = start_worker(store_url, namespace, "stalled", tries=1000, ttl_s=0.05)
    try:
        async with asyncio.timeout(20):
            while (head := await store.head("s")) is None or head.seq < 20:
                await asyncio.sleep(0.01)
        lease = await take_over_from(worker, make_store(store_url, budget_s=1.0))
        worker.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.3)
        head = await store.head("s")
        assert (head.seq, head.fence, head.owner) == (lease.seq, lease.fence, "heir")
    finally:
        worker.kill()
        worker.communicate()
