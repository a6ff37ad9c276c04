"""Results that the platform refuses, or cannot take for a while, against a real HTTP server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
import orjson
import pytest
from aiohttp import web

from flashkit.errors import OutputError
from flashkit.worker import runpod_sdk
from flashkit.worker.runpod_sdk import ResultPoster
from flashkit.worker.runtime import Outcome


@dataclass
class Platform:
    """Answers each post with the next status of a list, 200 after its end."""

    statuses: list[int] = field(default_factory=list)
    bodies: list[dict[str, object]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    async def receive(self, request: web.Request) -> web.Response:
        self.bodies.append(orjson.loads(await request.read()))
        self.paths.append(request.path)
        status = self.statuses.pop(0) if self.statuses else 200
        return web.Response(status=status, headers={"Location": "/moved"} if status == 307 else {})


MakePoster = Callable[[Platform], Awaitable[ResultPoster]]


@pytest.fixture
async def make_poster() -> AsyncIterator[MakePoster]:
    """Start a platform and return a poster that delivers to it."""
    runners: list[web.AppRunner] = []
    posters: list[ResultPoster] = []
    async with aiohttp.ClientSession() as session:

        async def make(platform: Platform) -> ResultPoster:
            app = web.Application()
            app.router.add_post("/{tail:.*}", platform.receive)
            runner = web.AppRunner(app)
            runners.append(runner)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            root = "http://{}:{}".format(*runner.addresses[0][:2])
            urls = {"done_url": f"{root}/done/$ID?gpu=x", "stream_url": f"{root}/stream/$ID?gpu=x"}
            posters.append(ResultPoster(session, **urls))
            return posters[-1]

        yield make
        for poster in posters:
            poster.close()
        for runner in runners:
            await runner.cleanup()


async def test_a_result_is_posted_again_until_the_platform_takes_it(make_poster: MakePoster) -> None:
    platform = Platform(statuses=[500, 502, 429, 503])
    poster = await make_poster(platform)

    await poster.post_result("job-1", Outcome(b'{"n":1}'))

    assert platform.bodies == [{"output": {"n": 1}}] * 5
    assert poster.exit_code == 0


async def test_a_result_follows_where_the_platform_has_moved(make_poster: MakePoster) -> None:
    platform = Platform(statuses=[307, 307])  # both ways of posting meet it
    poster = await make_poster(platform)

    await poster.post_result("job-1", Outcome(b"1"))

    assert platform.bodies[-1] == {"output": 1}
    assert platform.paths == ["/done/job-1", "/done/job-1", "/moved"]


@pytest.mark.parametrize("status", [400, 404, 413])
async def test_a_refused_result_becomes_a_failure_that_says_so(make_poster: MakePoster, status: int) -> None:
    platform = Platform(statuses=[status])
    poster = await make_poster(platform)

    await poster.post_result("job-1", Outcome(b'"too much"'))

    error = orjson.loads(platform.bodies[1]["error"])
    assert error["code"] == "result_refused"
    assert f"HTTP {status}" in error["message"]
    assert error["request_id"] == "job-1"


async def test_a_refused_chunk_fails_the_handler(make_poster: MakePoster) -> None:
    poster = await make_poster(Platform(statuses=[413]))

    with pytest.raises(OutputError, match="HTTP 413"):
        await poster.post_chunk("job-1", b'"x"')


async def test_a_platform_that_stays_away_makes_the_worker_exit_with_an_error(
    make_poster: MakePoster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job is then handed to another worker, because this one's process ended with it."""
    monkeypatch.setattr(runpod_sdk, "DELIVERY_SECONDS", 0.3)
    platform = Platform(statuses=[500] * 1000)
    poster = await make_poster(platform)

    await poster.post_result("job-1", Outcome(b"1"))

    assert poster.exit_code == 1
    assert len(platform.bodies) > 1


async def test_an_unreachable_platform_is_tried_again_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runpod_sdk, "DELIVERY_SECONDS", 0.3)
    async with aiohttp.ClientSession() as session:
        poster = ResultPoster(session, done_url="http://127.0.0.1:9/$ID?", stream_url="http://127.0.0.1:9/$ID?")
        await poster.post_result("job-1", Outcome(b"1"))
    assert poster.exit_code == 1
