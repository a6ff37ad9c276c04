"""While a worker or the platform serves, Python's garbage collector is out of the way."""

import gc

import pytest

from flashkit import cpu_endpoint, gpu_endpoint
from flashkit.emulator.server import Emulator
from flashkit.settings import Settings
from flashkit.worker.http.application import HttpApplication
from flashkit.worker.runtime import Runtime

USUAL = (700, 10, 10)


@pytest.fixture(autouse=True)
def usual():
    before = gc.get_threshold()
    gc.set_threshold(*USUAL)
    yield
    gc.set_threshold(*before)


def double(n: int) -> int:
    return 2 * n


async def no_chunks(chunk: bytes) -> None:
    raise AssertionError(chunk)


async def test_it_searches_rarely_and_through_new_objects_only_until_the_worker_stops():
    runtime = Runtime(cpu_endpoint()(double).definition, Settings())
    await runtime.start()
    assert gc.get_threshold()[0] == 10_000
    assert gc.get_freeze_count() > 0
    await runtime.stop()
    assert gc.get_threshold() == USUAL
    assert gc.get_freeze_count() == 0


async def test_on_a_gpu_it_searches_as_often_as_before_because_cycles_may_hold_its_memory():
    runtime = Runtime(gpu_endpoint(gpu="A100")(double).definition, Settings())
    await runtime.start()
    assert gc.get_threshold() == USUAL
    assert gc.get_freeze_count() > 0
    await runtime.stop()


async def test_settings_of_the_users_own_stay_as_they_are():
    gc.set_threshold(500, 5, 5)
    runtime = Runtime(cpu_endpoint()(double).definition, Settings())
    await runtime.start()
    assert gc.get_threshold() == (500, 5, 5)
    await runtime.stop()
    assert gc.get_threshold() == (500, 5, 5)


async def test_jobs_leave_no_cycles_behind():
    runtime = Runtime(cpu_endpoint()(double).definition, Settings())
    await runtime.start()
    for number in range(3):
        await runtime.run({"id": f"warm-{number}", "input": {"n": 1}}, emit=no_chunks)
    gc.collect()
    for number in range(50):
        await runtime.run({"id": f"j{number}", "input": {"n": number}}, emit=no_chunks)
    assert gc.collect() < 50
    await runtime.stop()


async def test_load_balanced_workers_and_the_platform_do_the_same(tmp_path):
    api = cpu_endpoint(name="api")

    @api.get("/items/{n}")
    async def item(n: int) -> int:
        return n

    application = HttpApplication(api.definition, Settings())
    await application.start()
    assert gc.get_threshold()[0] == 10_000
    await application.stop()
    assert gc.get_threshold() == USUAL
    async with Emulator([], state_dir=tmp_path):
        assert gc.get_threshold()[0] == 10_000
    assert gc.get_threshold() == USUAL
