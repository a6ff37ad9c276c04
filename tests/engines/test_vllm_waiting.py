"""How vLLM's processes wait for each other on a CPU."""

import asyncio
import time

import psutil
import pytest

from flashkit.worker.engines.vllm_waiting import AWAKE_S, LONGEST_NAP_S, SHORTEST_NAP_S, nap_after, wait_in_naps


def test_a_short_wait_is_spent_awake():
    assert nap_after(0.0) == nap_after(AWAKE_S * 0.99) == 0.0


@pytest.mark.parametrize(
    ("waited", "nap"),
    [(AWAKE_S, SHORTEST_NAP_S), (0.001, SHORTEST_NAP_S), (0.033, 0.00033), (0.9, LONGEST_NAP_S)],
)
def test_naps_are_short_beside_the_time_that_was_waited(waited, nap):
    assert nap_after(waited) == pytest.approx(nap)


@pytest.mark.parametrize(("options", "count"), [({}, 1), ({"distributed_executor_backend": "mp"}, 2)])
async def test_processes_of_an_idle_engine_leave_the_cores_to_others(load_tiny, options, count):
    engine = await load_tiny(**options)
    await engine.handle().complete("Once", max_tokens=8, ignore_eos=True)
    children = psutil.Process().children(recursive=True)
    before = {child: child.cpu_times() for child in children if "VLLM" in child.name()}
    assert len(before) == count
    started = time.monotonic()
    await asyncio.sleep(0.8)  # vLLM's own waiting takes a core for a second
    used = sum(sum(child.cpu_times()[:2]) - sum(times[:2]) for child, times in before.items())
    assert used < 0.4 * (time.monotonic() - started)
    await engine.close()


def test_a_vllm_without_these_waits_keeps_its_own(monkeypatch, require_vllm):
    from vllm.distributed.device_communicators import shm_broadcast

    monkeypatch.delattr(shm_broadcast, "SpinCondition")
    wait_in_naps()
    assert not hasattr(shm_broadcast, "SpinCondition")
