"""While a worker has sessions, Python's garbage collector is out of their way."""

import gc
from contextlib import AsyncExitStack

import pytest

from tests.sessions.session_lab import Lab


async def agent(session, count: int) -> int:
    """Run many steps."""
    return sum([await session.step(f"step{number}", abs, number) for number in range(count)])


@pytest.fixture
def usual():
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield (700, 10, 10)
    gc.set_threshold(*before)


async def test_it_searches_rarely_until_the_workers_stop(tmp_path, namespace, usual):
    async with AsyncExitStack() as stack:
        lab = Lab(f"sqlite:///{tmp_path}/sessions.db", namespace, stack)
        for name in ("w1", "w2"):
            await lab.worker(agent, name)
        assert gc.get_threshold()[0] == 10_000
        assert gc.get_freeze_count() > 0
    assert gc.get_threshold() == usual
    assert gc.get_freeze_count() == 0


async def test_settings_of_the_users_own_stay_as_they_are(tmp_path, namespace, usual):
    gc.set_threshold(500, 5, 5)
    async with AsyncExitStack() as stack:
        await Lab(f"sqlite:///{tmp_path}/sessions.db", namespace, stack).worker(agent)
        assert gc.get_threshold() == (500, 5, 5)
    assert gc.get_threshold() == (500, 5, 5)


async def test_turns_leave_no_cycles_behind_for_it(lab):
    worker = await lab.worker(agent)
    await worker.answer("warm-up", session_id="s", count=1)
    gc.collect()
    for number in range(20):
        await worker.answer(f"j{number}", session_id="s", count=5)
    assert gc.collect() < 20 * 5
