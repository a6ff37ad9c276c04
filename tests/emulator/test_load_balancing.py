"""Load-balanced endpoints on the emulator: real workers, real connections, and what goes wrong with them."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
from pathlib import Path

import aiohttp
import psutil
import pytest

from flashkit.emulator.clock import Clock
from flashkit.emulator.events import RequestEvent
from flashkit.emulator.server import LocalEndpoint
from flashkit.errors import HandlerError, InputError, PlatformError
from flashkit.http_client import HttpClient
from flashkit.protocol import PlatformDefaults
from flashkit.settings import Settings
from flashkit.spec import EndpointSpec, Kind, ScalerType, WorkerBounds

APPS = Path(__file__).parents[1] / "apps"
QUICK = PlatformDefaults(ping_interval=0.1, respawn_delay=0.1)


def balanced(name="api", *, command=None, attribute=None, workers=(0, 1), env=None, **options):
    """Return an endpoint of `tests/apps/http_app.py`, or of a command of its own."""
    options = {"idle_timeout": 600, "concurrency": 8, "scaler_value": 100, **options}
    spec = EndpointSpec(
        name=name,
        kind=Kind.CPU,
        cpu="cpu3c-1-2",
        workers=WorkerBounds(*workers),
        scaler_type=ScalerType.REQUEST_COUNT,
        execution_timeout_ms=330_000,
        load_balanced=True,
        env=env or {},
        **options,
    )
    return LocalEndpoint(
        spec, command or (sys.executable, "-m", "flashkit.worker", f"http_app.py:{attribute or name}"), APPS
    )


THIRD_PARTY = ("sh", "-c", f"exec {sys.executable} -m uvicorn plain_server:app --host 127.0.0.1 --port $PORT")


@pytest.fixture
def start(start_emulator, events):
    """Start an emulator of its own for a test that changes much."""

    async def begin(*endpoints, **options):
        return await start_emulator(*endpoints, on_event=events, **{"defaults": QUICK, **options})

    return begin


@pytest.fixture(scope="module")
async def emulator(tmp_path_factory, worker_environ, events):
    """One for all tests that leave their worker as it was."""
    from flashkit.emulator.server import Emulator

    queue = LocalEndpoint(EndpointSpec(name="queue", kind=Kind.CPU, cpu="cpu3c-1-2"), (sys.executable,), APPS)
    endpoints = [balanced(workers=(1, 1)), balanced("plain", command=THIRD_PARTY, env={"HEALTH_CHECK_PATH": "up"})]
    async with Emulator(
        [*endpoints, queue],
        state_dir=tmp_path_factory.mktemp("state"),
        environ=worker_environ,
        on_event=events,
        defaults=PlatformDefaults(ping_interval=0.1, request_limit_bytes=2_000_000),
    ) as emulator:
        yield emulator


@pytest.fixture
def base(emulator):
    return f"{emulator.url}/lb/api"


def requests_of(events, endpoint, path=None):
    return [e for e in events.all if isinstance(e, RequestEvent) and e.endpoint == endpoint and path in (None, e.path)]


def worker_ids(emulator, endpoint="api"):
    return [worker.id for worker in emulator.platform.workers(endpoint)]


async def pid_of(http, base, **options):
    return (await http("GET", f"{base}/pid", **options)).body["pid"]


async def test_any_path_goes_to_a_worker_with_its_query_and_comes_back_with_the_workers_id(http, base, emulator):
    answer = await http("GET", f"{base}/items/3?q=a%20b&tags=x&tags=y")
    assert (answer.status, answer.body["q"], answer.body["tags"]) == (200, "a b", ["x", "y"])
    assert answer.headers["x-runpod-worker-id"] in worker_ids(emulator)


async def test_an_endpoint_is_also_reached_by_a_host_of_its_own(http, emulator):
    port = emulator.url.rpartition(":")[2]
    answer = await http("GET", f"{emulator.url}/items/3", headers={"host": f"api.localhost:{port}"})
    assert (answer.status, answer.body["item_id"]) == (200, 3)
    index = await http("GET", f"{emulator.url}/", headers={"host": f"nobody.localhost:{port}"})
    assert index.body["platform"] == "flashkit"
    assert index.body["endpoints"]["api"] == {"url": f"http://nobody.localhost:{port}/lb/api"}


async def test_bodies_and_answers_pass_as_they_are(http, base):
    answer = await http("POST", f"{base}/echo", data=b"\x00\xff" * 1000, headers={"content-type": "x/y"})
    assert (answer.status, answer.body["bytes"], answer.body["type"]) == (200, 2000, "x/y")
    bad = await http("GET", f"{base}/items/three")
    assert (bad.status, bad.error["code"]) == (400, "input_invalid")


async def test_a_body_without_a_length_passes_too(http, base):
    async def chunks():
        for _ in range(5):
            yield b"12345"
            await asyncio.sleep(0.01)

    assert (await http("POST", f"{base}/echo", data=chunks())).body["bytes"] == 25


async def test_head_has_no_body(http, base):
    assert (await http("HEAD", f"{base}/pid")).status == 200


async def test_headers_of_one_connection_are_not_passed_on(http, emulator):
    headers = {"connection": "x-private", "x-private": "1", "te": "trailers", "x-public": "2"}
    seen = (await http("GET", f"{emulator.url}/lb/plain/headers", headers=headers)).body
    assert seen["x-public"] == "2"
    assert {"x-private", "te", "connection", "keep-alive"} & set(seen) <= {"connection"}
    assert "x-request-id" in seen


async def test_the_first_byte_of_a_stream_comes_before_its_end(base):
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{base}/chat", json={"text": "one two", "pause": 1.0}) as response,
    ):
        assert await response.content.readline() == b'data: "one"\n'
        assert not response.content.at_eof()
        assert b'"two"' in await response.content.read()


async def test_a_websocket_passes_in_both_directions(base, emulator, events, wait_until):
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{base}/live/attic?times=2") as socket:
        await socket.send_str("hello")
        assert [await socket.receive_str() for _ in range(2)] == ["attic: hello"] * 2
        assert len(emulator.platform.workers("api")[0].requests) == 1
        await socket.send_str("end")
        await socket.receive()
        assert socket.close_code == 1000
    event = (await wait_until(lambda: requests_of(events, "api", "/live/attic")))[-1]
    assert (event.method, event.status, event.problem) == ("WEBSOCKET", 101, None)


async def test_a_websocket_that_the_worker_refuses_or_nobody_has_is_refused(base, emulator):
    async with aiohttp.ClientSession() as session:
        for url in (f"{base}/live/attic?times=many", f"{base}/nothing", f"{emulator.url}/nothing"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await session.ws_connect(url)
            assert caught.value.status in (403, 404)


async def test_a_client_that_hangs_up_ends_the_request_in_the_worker(base, tmp_path, events, wait_until):
    mark = tmp_path / "mark"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.5)) as session:
        with pytest.raises(TimeoutError):
            await session.get(f"{base}/sleep?seconds=4&mark={mark}", headers={"x-request-id": "left"})
    await wait_until(mark.exists)
    [event] = await wait_until(lambda: [e for e in requests_of(events, "api") if e.request_id == "left"])
    assert (event.status, event.problem) == (None, "the client hung up")


async def test_a_client_that_leaves_a_stream_closes_its_generator(base, tmp_path, wait_until):
    mark = tmp_path / "mark"
    async with aiohttp.ClientSession() as session:
        response = await session.get(f"{base}/ticks?mark={mark}")
        assert await response.content.readline() == b"data: 0\n"
        response.close()
        await wait_until(mark.exists)


async def test_a_websocket_client_that_gives_up_waiting_waits_no_more(start, tmp_path, wait_until, events):
    emulator = await start(balanced("early", attribute="api", env={"GATE": str(tmp_path / "never")}))
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1)) as session:
        with pytest.raises((TimeoutError, aiohttp.ClientError)):
            await session.ws_connect(f"{emulator.url}/lb/early/live/x", timeout=aiohttp.ClientWSTimeout(ws_receive=1))
    event = (await wait_until(lambda: requests_of(events, "early")))[0]
    assert (event.method, event.status, event.problem) == ("WEBSOCKET", None, "the client hung up")
    assert emulator.platform.health("early")["jobs"]["inQueue"] == 0


async def test_a_websocket_client_that_goes_away_is_no_load_any_more(base, emulator, wait_until):
    async with aiohttp.ClientSession() as session:
        socket = await session.ws_connect(f"{base}/live/attic")
        await wait_until(lambda: emulator.platform.workers("api")[0].requests)
        socket._response.connection.transport.abort()
    await wait_until(lambda: not emulator.platform.workers("api")[0].requests)


@pytest.mark.parametrize("has_length", [True, False])
async def test_a_body_over_the_limit_is_refused(base, has_length):
    async def chunks():
        for _ in range(30):
            yield b" " * 100_000

    body = io.BytesIO(b" " * 3_000_000) if has_length else chunks()
    async with aiohttp.ClientSession() as session, session.post(f"{base}/echo", data=body) as response:
        answer = await response.json()
        assert (response.status, answer["limit_bytes"]) == (413, 2_000_000)


async def test_an_answer_over_the_limit_does_not_pass(emulator):
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{emulator.url}/lb/plain/large?bytes=3000000") as response:
            assert (response.status, (await response.json())["limit_bytes"]) == (502, 2_000_000)
        with pytest.raises(aiohttp.ClientPayloadError):
            async with session.get(f"{emulator.url}/lb/plain/large?bytes=3000000&streamed=1") as response:
                await response.read()


async def test_a_plain_third_party_server_works_with_a_health_path_of_its_own(http, emulator):
    answer = await http("GET", f"{emulator.url}/lb/plain/hello")
    assert (answer.status, answer.body) == (200, {"hello": "from a plain server"})


async def test_a_request_event_tells_what_happened(http, base, events, emulator, wait_until):
    await http("POST", f"{base}/add?b=2", json={"a": 1}, headers={"x-request-id": "r-77"})
    [event] = await wait_until(lambda: [e for e in requests_of(events, "api", "/add") if e.request_id == "r-77"])
    assert (event.method, event.status, event.response_bytes) == ("POST", 200, 1)
    assert event.worker_id in worker_ids(emulator)
    assert event.wait_ms >= 0
    assert event.run_ms >= 0


async def test_prints_of_a_request_carry_its_id(http, base, events, wait_until):
    await http("GET", f"{base}/pid", headers={"x-request-id": "r-78"})
    lines = await wait_until(lambda: [line for line in events.lines("api") if line.job_id == "r-78"])
    assert lines[0].text == "request r-78"


async def test_the_job_api_and_the_other_kind_of_endpoint_are_told_apart(http, emulator):
    queue = await http("GET", f"{emulator.url}/lb/queue/x")
    assert (queue.status, queue.body) == (400, {"error": "not allowed for QB API"})
    jobs = await http("POST", f"{emulator.url}/v2/api/run", json={"input": {}})
    assert (jobs.status, jobs.error["code"]) == (404, "route_unknown")
    assert "/lb/api/" in jobs.error["hint"]
    assert (await http("GET", f"{emulator.url}/v2/api/health")).body["workers"].keys() >= {"ready", "running"}
    unknown = await http("GET", f"{emulator.url}/lb/nobody/x")
    assert (unknown.status, "api, plain" in unknown.error["hint"]) == (404, True)


async def test_pages_of_other_machines_and_requests_without_the_key_are_refused(http, base, start):
    assert (await http("GET", f"{base}/pid", headers={"origin": "https://evil.example"})).status == 403
    emulator = await start(balanced(), api_key="secret")
    url = f"{emulator.url}/lb/api/pid"
    assert (await http("GET", url)).status == 401
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        async with aiohttp.ClientSession() as session:
            await session.ws_connect(f"{emulator.url}/lb/api/live/x")
    assert caught.value.status == 401
    assert (await http("GET", url, headers={"authorization": "Bearer secret"})).status == 200


async def test_the_client_reaches_it_by_name(emulator):
    settings = Settings(base_url=f"{emulator.url}/v2")
    async with HttpClient("api", settings) as api:
        answer = (await api.request("POST", "/add", json={"a": 2}, params={"b": 3})).raise_for_status()
        assert (answer.json(), answer.worker_id) == (5, worker_ids(emulator)[0])
        parts = [part async for part in api.stream("POST", "/chat", json={"text": "a b"})]
        events = api.stream("GET", "/letters", params={"text": "ab"}, headers={"Accept": "text/event-stream"})
        assert (parts, [part async for part in events]) == (["a", "b"], ["a", "b"])
        assert "".join([part async for part in api.stream("GET", "/stream")]) == "part part part "
        with pytest.raises(InputError, match="is 'three'"):
            (await api.request("GET", "/items/three")).raise_for_status()
        for accept in ("application/x-ndjson", "text/event-stream"):
            body = {"text": "a b", "fail_at": 1}
            with pytest.raises(HandlerError, match="lost the thread"):
                _ = [part async for part in api.stream("POST", "/chat", json=body, headers={"Accept": accept})]
        with pytest.raises(HandlerError, match="broken"):
            _ = [part async for part in api.stream("GET", "/fail", params={"how": "raise"})]
        with pytest.raises(InputError, match="is not a path"):
            await api.request("GET", "items")


async def test_the_client_says_when_nobody_is_there():
    async with HttpClient("api", Settings(base_url="http://127.0.0.1:9/v2")) as api:
        with pytest.raises(PlatformError, match="cannot connect"):
            await api.request("GET", "/")


async def test_a_request_starts_a_worker_and_an_idle_one_is_stopped(start, http, wait_until):
    emulator = await start(balanced(idle_timeout=1))
    assert worker_ids(emulator) == []
    answer = await http("GET", f"{emulator.url}/lb/api/pid")
    assert answer.status == 200
    await wait_until(lambda: worker_ids(emulator) == [])


async def test_workers_follow_the_number_of_requests(start, http, wait_until):
    emulator = await start(balanced(workers=(0, 3), scaler_value=1, concurrency=4, idle_timeout=1))
    base = f"{emulator.url}/lb/api"
    first = await pid_of(http, base)
    answers = [asyncio.ensure_future(http("GET", f"{base}/sleep?seconds=4")) for _ in range(3)]
    await wait_until(lambda: len(worker_ids(emulator)) == 3)
    await asyncio.gather(*answers)
    await wait_until(lambda: emulator.platform.health("api")["workers"]["idle"] == 3 or not worker_ids(emulator))
    assert first
    await wait_until(lambda: worker_ids(emulator) == [])


async def test_requests_beyond_the_room_wait_and_go_to_whoever_is_free_first(start, http, events, wait_until):
    emulator = await start(balanced("narrow", attribute="api", workers=(1, 1), concurrency=1))
    base = f"{emulator.url}/lb/narrow"
    answers = await asyncio.gather(*(http("GET", f"{base}/sleep?seconds=0.3") for _ in range(4)))
    assert [answer.status for answer in answers] == [200] * 4
    await wait_until(lambda: len(requests_of(events, "narrow")) == 4)
    assert max(event.wait_ms for event in requests_of(events, "narrow")) >= 800


async def test_a_request_that_nobody_has_room_for_is_refused_in_the_documented_words(start, http, tmp_path):
    gate = tmp_path / "never"
    emulator = await start(
        balanced(env={"GATE": str(gate)}), defaults=PlatformDefaults(request_wait=1.0, ping_interval=0.1)
    )
    answer = await http("GET", f"{emulator.url}/lb/api/pid")
    assert (answer.status, answer.body["error"]) == (400, "no workers available")


async def test_a_request_that_takes_too_long_is_ended(start, http, tmp_path, wait_until):
    mark = tmp_path / "mark"
    emulator = await start(balanced(), defaults=PlatformDefaults(request_timeout=1.0, ping_interval=0.1))
    base = f"{emulator.url}/lb/api"
    answer = await http("GET", f"{base}/sleep?seconds=4&mark={mark}")
    assert (answer.status, answer.body["error"]) == (524, "the request took longer than 1 s")
    await wait_until(mark.exists)
    with pytest.raises(aiohttp.ClientPayloadError):  # an answer that had begun cannot get another status
        await http("POST", f"{base}/chat", json={"text": "a b c d", "pause": 0.7})


async def test_limits_follow_the_platforms_clock(start, http, tmp_path, wait_until):
    clock = Clock()
    emulator = await start(balanced(env={"GATE": str(tmp_path / "never")}), clock=clock)
    waiting = asyncio.ensure_future(http("GET", f"{emulator.url}/lb/api/pid"))
    await wait_until(lambda: worker_ids(emulator))
    await clock.advance(119)
    assert not waiting.done()
    await clock.advance(2)
    assert (await waiting).status == 400


async def test_a_worker_that_is_killed_in_the_middle_is_a_502_and_another_one_comes(start, http, wait_until):
    emulator = await start(balanced())
    base = f"{emulator.url}/lb/api"
    pid = await pid_of(http, base)
    slow = asyncio.ensure_future(http("GET", f"{base}/sleep?seconds=4"))
    streamed = asyncio.ensure_future(http("POST", f"{base}/chat", json={"text": "a b c d e f g h", "pause": 0.5}))
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{base}/live/attic") as socket:
        await wait_until(lambda: len(emulator.platform.workers("api")[0].requests) == 3)
        await asyncio.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        answer = await slow
        assert (answer.status, answer.body["error"]) == (502, "the worker died: SIGKILL")
        with pytest.raises(aiohttp.ClientPayloadError):
            await streamed
        message = await socket.receive()
        assert (message.data, message.extra) == (1011, "the worker died: SIGKILL")
    assert await pid_of(http, base) != pid


async def test_a_reload_finishes_what_runs_on_the_old_worker(start, http, wait_until):
    local = balanced()
    emulator = await start(local)
    base = f"{emulator.url}/lb/api"
    pid = await pid_of(http, base)
    slow = asyncio.ensure_future(http("GET", f"{base}/sleep?seconds=1.5"))
    await wait_until(lambda: emulator.platform.workers("api")[0].requests)
    await emulator.replace([local])
    assert await pid_of(http, base) != pid
    assert (await slow).body == "slept"
    await wait_until(lambda: not psutil.pid_exists(pid))


async def test_the_removal_of_an_endpoint_refuses_what_waits(start, http, tmp_path, wait_until):
    emulator = await start(balanced(env={"GATE": str(tmp_path / "never")}))
    waiting = asyncio.ensure_future(http("GET", f"{emulator.url}/lb/api/pid"))
    await wait_until(lambda: worker_ids(emulator))
    await emulator.replace([], removed=["api"])
    answer = await waiting
    assert (answer.status, answer.body["error"]) == (404, "endpoint 'api' was removed")


async def test_workers_that_do_not_start_are_told_at_once(start, http):
    emulator = await start(
        balanced("broken"), defaults=PlatformDefaults(failed_starts=2, respawn_delay=0.1, ping_interval=0.1)
    )
    answer = await http("GET", f"{emulator.url}/lb/broken/")
    assert (answer.status, answer.body["error"]) == (502, "the workers do not start")


async def test_a_server_on_another_port_gets_no_requests(start, http):
    """It never answers a ping, so it is not taken into rotation."""
    command = ("sh", "-c", f"exec {sys.executable} -m uvicorn plain_server:app --host 127.0.0.1 --port 0")
    emulator = await start(
        balanced("plain", command=command), defaults=PlatformDefaults(request_wait=2.0, ping_interval=0.1)
    )
    assert (await http("GET", f"{emulator.url}/lb/plain/hello")).body["error"] == "no workers available"


async def test_servers_that_break_the_rules_are_told_apart(start, http, events, wait_until):
    command = (sys.executable, "raw_server.py")
    emulator = await start(balanced("raw", command=command, workers=(1, 1)))
    base = f"{emulator.url}/lb/raw"
    for path in ("/garbage", "/close"):
        answer = await http("GET", f"{base}{path}")
        assert answer.status == 502
        assert answer.body["error"].startswith("the worker broke the connection: ")
        assert answer.body["worker"] == worker_ids(emulator, "raw")[0]
    with pytest.raises(aiohttp.ClientPayloadError):
        await http("GET", f"{base}/half")
    ids = await http("GET", f"{base}/ids", headers={"x-request-id": "r-1"})
    headers = {name.lower(): value for name, value in ids.headers.items()}
    assert (headers["x-request-id"], headers["x-runpod-worker-id"]) == ("r-1", answer.body["worker"])
    assert "x-secret" not in headers
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await session.ws_connect(f"{base}/close")
    assert caught.value.status == 502
    await wait_until(lambda: len([event for event in requests_of(events, "raw") if event.problem]) == 4)


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_seen(base, emulator, events, wait_until):
    port = int(emulator.url.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /lb/api/items HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\nx-request-id: half\r\n\r\n"
    writer.write(head + b'{"name": ')
    await writer.drain()
    writer.close()
    ended = await wait_until(lambda: [event for event in requests_of(events, "api") if event.request_id == "half"])
    assert (ended[0].status, ended[0].problem) == (None, "the client hung up")


async def test_an_unfit_worker_is_out_of_rotation_until_it_is_fit_again(start, http, events, wait_until):
    emulator = await start(balanced(workers=(1, 1)), defaults=PlatformDefaults(request_wait=1.0, ping_interval=0.1))
    base = f"{emulator.url}/lb/api"
    await wait_until(lambda: emulator.platform.health("api")["workers"]["ready"], seconds=60)
    await http("POST", f"{base}/health", json={"fit": False})
    await wait_until(lambda: not emulator.load_balancing.balancer.is_fit(worker_ids(emulator)[0]))
    assert (await http("GET", f"{base}/pid")).body["error"] == "no workers available"
    port = emulator._supervisor.http_ports(worker_ids(emulator)[0]).requests
    await http("POST", f"http://127.0.0.1:{port}/health", json={"fit": True})
    assert (await http("GET", f"{base}/pid")).status == 200
    moments = [e for e in events.of_workers("api") if e.worker_id == worker_ids(emulator)[0]]
    assert [(e.what, e.detail) for e in moments if "answer" in e.detail] == [
        ("unhealthy", "/ping answered 503"),
        ("ready", "/ping answers 200 again"),
    ]


async def test_an_endpoint_that_wants_its_health_apart_gets_two_ports(start, http):
    emulator = await start(balanced(env={"PORT": "5000", "PORT_HEALTH": "5001"}))
    assert (await http("GET", f"{emulator.url}/lb/api/pid")).status == 200
    ports = emulator._supervisor.http_ports(worker_ids(emulator)[0])
    assert ports.requests != ports.health
    assert (await http("GET", f"http://127.0.0.1:{ports.health}/")).body == {"status": "healthy"}


async def test_many_requests_and_many_deaths_leave_nothing_behind(start, http, wait_until):
    emulator = await start(balanced(workers=(0, 3), scaler_value=4, concurrency=3))
    base = f"{emulator.url}/lb/api"

    async def kill_some():
        for _ in range(4):
            await wait_until(lambda: emulator.platform.health("api")["workers"]["running"], seconds=60)
            busy = next((worker for worker in emulator.platform.workers("api") if worker.requests), None)
            if busy is not None:
                emulator.kill_worker(busy.id)
            await asyncio.sleep(0.2)

    killing = asyncio.ensure_future(kill_some())
    answers = await asyncio.gather(*(http("GET", f"{base}/sleep?seconds=0.1") for _ in range(300)))
    await killing
    assert {answer.status for answer in answers} <= {200, 502}
    assert sum(answer.status == 502 for answer in answers) <= 4 * 3
    balancer = emulator.load_balancing.balancer
    assert (dict(balancer._running), balancer._waiting) == ({}, {})
    fleet = emulator.platform._fleets["api"]
    assert (fleet.running_requests, len(fleet.waiting_requests)) == (0, 0)


async def test_a_worker_that_stays_unfit_is_replaced(start, http, wait_until):
    defaults = PlatformDefaults(unhealthy_keep=0.5, drain_grace=0.5, ping_interval=0.1, respawn_delay=0.1)
    emulator = await start(balanced(workers=(1, 1)), defaults=defaults)
    base = f"{emulator.url}/lb/api"
    pid = await pid_of(http, base)
    await http("POST", f"{base}/health", json={"fit": False})
    await wait_until(lambda: not psutil.pid_exists(pid))
    assert await pid_of(http, base) != pid


async def test_affinity_prefers_waits_for_or_insists_on_a_worker(start, http, wait_until):
    defaults = PlatformDefaults(affinity_wait=1.0, ping_interval=0.1)
    emulator = await start(balanced(workers=(2, 2), concurrency=1), balanced("other"), defaults=defaults)
    base = f"{emulator.url}/lb/api"
    await wait_until(lambda: emulator.platform.health("api")["workers"]["ready"] == 2, seconds=40)
    first, second = worker_ids(emulator)

    def asking(value):
        return {"headers": {"x-runpod-worker-id": value}}

    for wanted in (first, second, first):
        answer = await http("GET", f"{base}/pid", **asking(wanted))
        assert answer.headers["x-runpod-worker-id"] == wanted
    await wait_until(lambda: not emulator.platform.find_worker(first).requests)  # the last one may just be ending
    busy = asyncio.ensure_future(http("GET", f"{base}/sleep?seconds=3", **asking(first)))
    await wait_until(lambda: emulator.platform.find_worker(first).requests)
    soft = await http("GET", f"{base}/pid", **asking(first))
    assert (soft.status, soft.headers["x-runpod-worker-id"]) == (200, second)
    strict = await http("GET", f"{base}/pid", **asking(f"strict {first}"))
    assert (strict.status, strict.body["error"]) == (400, "timed out waiting for worker")
    assert (await http("GET", f"{base}/pid", **asking(f"strict {second}"))).status == 200
    assert (await http("GET", f"{base}/pid", **asking("nobody"))).status == 200
    for header in ("strict nobody", "strict-resume nobody"):
        gone = await http("GET", f"{base}/pid", **asking(header))
        assert (gone.status, gone.body["error"]) == (404, "affinity_worker_gone")
    other = await http("GET", f"{emulator.url}/lb/other/pid", **asking(f"strict {second}"))
    assert other.status == 404
    assert (await busy).status == 200
    emulator.kill_worker(first)
    await wait_until(lambda: first not in worker_ids(emulator))
    assert (await http("GET", f"{base}/pid", **asking(f"strict {first}"))).status == 404


async def test_a_frozen_worker_is_brought_back_by_a_request_that_insists_on_it(start, http, wait_until):
    emulator = await start(balanced())
    base = f"{emulator.url}/lb/api"
    pid = await pid_of(http, base)
    worker_id = worker_ids(emulator)[0]
    await wait_until(lambda: emulator.platform.find_worker(worker_id).state == "IDLE")
    emulator.freeze_worker(worker_id)
    gone = await http("GET", f"{base}/pid", headers={"x-runpod-worker-id": f"strict {worker_id}"})
    assert gone.status == 404
    assert await pid_of(http, base, headers={"x-runpod-worker-id": f"strict-resume {worker_id}"}) == pid
    await wait_until(lambda: emulator.platform.find_worker(worker_id).state == "IDLE")
    emulator.freeze_worker(worker_id)
    emulator.set_capacity("api", 0)
    waiting = asyncio.ensure_future(
        http("GET", f"{base}/pid", headers={"x-runpod-worker-id": f"strict-resume {worker_id}"})
    )
    await wait_until(lambda: emulator.platform._fleets["api"].waiting_requests)
    emulator.set_capacity("api", None)
    assert (await waiting).body["pid"] == pid
    await wait_until(lambda: emulator.platform.find_worker(worker_id).state == "IDLE")
    emulator.freeze_worker(worker_id)
    assert await pid_of(http, base) == pid  # any request is a reason to thaw one


async def test_the_end_of_the_platform_lets_requests_finish_and_refuses_what_waits(
    worker_environ, tmp_path, http, wait_until
):
    from flashkit.emulator.server import Emulator

    emulator = Emulator(
        [balanced(workers=(1, 1), concurrency=1)],
        state_dir=tmp_path,
        environ=worker_environ,
        defaults=QUICK,
        shutdown_grace=20,
    )
    async with emulator:
        base = f"{emulator.url}/lb/api"
        await http("GET", f"{base}/pid")
        running = asyncio.ensure_future(http("GET", f"{base}/sleep?seconds=1"))
        await wait_until(lambda: emulator.platform.workers("api")[0].requests)
        waiting = asyncio.ensure_future(http("GET", f"{base}/pid"))
        await wait_until(lambda: emulator.platform._fleets["api"].waiting_requests)
    assert (await running).body == "slept"
    assert (await waiting).status == 503
