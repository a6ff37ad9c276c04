"""What engines show of themselves in metrics."""

from __future__ import annotations

import pytest
from aiohttp import web

from flashkit.telemetry.metrics_worker import read_gauges, watch_gauge
from flashkit.worker.engines.gauges import watch_engine
from flashkit.worker.engines.vllm_capacity import Capacity
from tests.engines.test_proxy import Server, load


@pytest.fixture(autouse=True)
def no_gauges():
    yield
    for name in ("flashkit.engine.kv_cache.usage", "flashkit.engine.requests"):
        watch_gauge(name, lambda: None)


class Stats:
    def __init__(self, usage):
        self.kv_cache_usage = usage
        self.num_running_reqs = 1


def test_an_engine_shows_how_full_its_cache_is_and_how_many_requests_it_has():
    class Engine:
        def __init__(self):
            self.capacity = Capacity()

        @property
        def kv_cache_usage(self):
            return self.capacity.kv_usage

        @property
        def request_count(self):
            return self.capacity.running

    engine = Engine()
    watch_engine(engine)
    assert read_gauges() == {"flashkit.engine.kv_cache.usage": 0.0, "flashkit.engine.requests": 0.0}
    engine.capacity.enter()
    engine.capacity.note_step(Stats(0.75), None, 0)
    assert read_gauges() == {"flashkit.engine.kv_cache.usage": 0.75, "flashkit.engine.requests": 1.0}


def test_an_engine_without_figures_shows_none():
    watch_engine(object())
    assert read_gauges() == {}


async def test_a_server_beside_the_worker_is_asked_how_full_its_cache_is():
    async def metrics(request):
        text = "".join(
            f'vllm:kv_cache_usage_perc{{engine="{number}"}} {usage}\nvllm:prompt_tokens_total{{}} 3.0\n'
            for number, usage in enumerate((0.25, 0.5))
        )
        return web.Response(text=text)

    server = Server()
    server.app.router.add_get("/metrics", metrics)
    async with server:
        engine = await load(server.base_url)
        watch_engine(engine)
        assert read_gauges() == {"flashkit.engine.requests": 0.0}
        await engine._read_metrics()
        assert read_gauges() == {"flashkit.engine.requests": 0.0, "flashkit.engine.kv_cache.usage": 0.5}
        await engine.close()
