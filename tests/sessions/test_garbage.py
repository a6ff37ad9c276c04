"""A worker's garbage collector searches rarely, so turns must not need it."""

import gc


async def agent(session, count: int) -> int:
    """Run many steps."""
    return sum([await session.step(f"step{number}", abs, number) for number in range(count)])


async def test_turns_leave_no_cycles_behind(lab):
    worker = await lab.worker(agent)
    await worker.answer("warm-up", session_id="s", count=1)
    gc.collect()
    for number in range(20):
        await worker.answer(f"j{number}", session_id="s", count=5)
    assert gc.collect() < 20 * 5
