"""Idempotency keys on the called side: one key, one piece of work, whoever asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flashkit import cpu_endpoint
from flashkit.settings import Settings
from flashkit.worker.runtime import Outcome, Runtime

ran: list[int] = []


@cpu_endpoint(concurrency=4)
async def double(n: int) -> int:
    ran.append(n)
    await asyncio.sleep(0.1)
    if n < 0:
        raise ValueError("negative")
    return n * 2


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[Runtime]:
    """A worker that shares a store with others."""
    ran.clear()
    settings = Settings.from_environment({"FLASHKIT_STATE": f"sqlite:///{tmp_path}/s.db"})
    runtime = Runtime(double.definition, settings)
    await runtime.start()
    yield runtime
    await runtime.stop()


async def run(runtime: Runtime, job_id: str, n: int, **envelope: Any) -> Outcome:
    """Run one job in a task of its own, as a worker does."""

    async def emit(chunk: bytes) -> None:
        raise AssertionError(chunk)

    job = {"id": job_id, "input": {"n": n, "_flashkit": envelope}}
    return await asyncio.create_task(runtime.run(job, emit=emit))


async def test_jobs_with_one_key_share_one_run(runtime: Runtime) -> None:
    outcomes = await asyncio.gather(*(run(runtime, f"job-{index}", 3, key="k") for index in range(4)))
    assert [outcome.output for outcome in outcomes] == [b"6"] * 4
    assert ran == [3]


async def test_a_failure_is_not_kept(runtime: Runtime) -> None:
    for index in range(2):
        outcome = await run(runtime, f"job-{index}", -1, key="k")
        assert outcome.error is not None
    assert ran == [-1, -1]


async def test_other_keys_and_no_key_run_for_themselves(runtime: Runtime) -> None:
    for envelope in ({"key": "a"}, {"key": "b"}, {}, {"key": 5}):
        assert (await run(runtime, f"job-{envelope}", 1, **envelope)).output == b"2"
    assert ran == [1, 1, 1, 1]


async def test_a_job_that_replaces_a_lost_one_does_not_wait_for_its_claim(runtime: Runtime) -> None:
    deduplicator = runtime._open_deduplicator()
    await deduplicator._store.claim("double:k", "lost-job", lease_s=30.0)

    outcome = await asyncio.wait_for(run(runtime, "job-2", 4, key="k", instead_of="lost-job"), timeout=5)

    assert outcome.output == b"8"


async def test_a_store_that_is_away_does_not_stop_the_work(runtime: Runtime, tmp_path: Path) -> None:
    for path in tmp_path.iterdir():
        path.unlink()
    (tmp_path / "s.db").mkdir()
    assert (await run(runtime, "job-1", 2, key="k")).output == b"4"
