"""Clients and handlers that send without end, or never read: memory stays bounded, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import sys
import textwrap
from pathlib import Path

import aiohttp
import psutil
import pytest

from flashkit.emulator.connections import HEAD_LIMIT_BYTES, PIPELINE_LIMIT
from flashkit.emulator.recorder import ALL_LINES_BYTES, WORKER_LINES_BYTES
from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.protocol import PlatformDefaults
from flashkit.spec import EndpointSpec, Kind, ScalerType, WorkerBounds

APPS = Path(__file__).parents[1] / "apps"
MEGABYTE = 1_000_000
ROOM_BYTES = 40 * MEGABYTE
"""What a flood many times as large may cost; most of it is noise of the allocator."""

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
UPLOAD = b"POST /v2/quiet/run HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


def memory():
    gc.collect()
    return psutil.Process().memory_info().rss


@pytest.fixture(scope="module")
async def emulator(tmp_path_factory, make_endpoint, worker_environ):
    spec = EndpointSpec(
        name="web", kind=Kind.CPU, cpu="cpu3c-1-2", workers=WorkerBounds(1, 1), idle_timeout=600, concurrency=8,
        scaler_type=ScalerType.REQUEST_COUNT, scaler_value=100, load_balanced=True, execution_timeout_ms=330_000,
        env={"HEALTH_CHECK_PATH": "/up"},
    )  # fmt: skip
    command = ("sh", "-c", f"exec {sys.executable} -m uvicorn plain_server:app --host 127.0.0.1 --port $PORT")
    async with Emulator(
        [make_endpoint("quiet", "silent"), make_endpoint("noisy", "noisy"), LocalEndpoint(spec, command, APPS)],
        state_dir=tmp_path_factory.mktemp("state"),
        environ=worker_environ,
        shutdown_grace=0.5,
        defaults=PlatformDefaults(poll_hold=1.0, ping_interval=0.2, request_limit_bytes=200 * MEGABYTE),
    ) as emulator:
        yield emulator


@pytest.fixture
async def connect(emulator):
    """Open plain connections to the platform that are closed with the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(**options):
            host, port = emulator.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port), **options)
            stack.push_async_callback(hang_up, writer)
            return reader, writer

        yield open_one


async def hang_up(writer):
    writer.transport.abort()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def is_served(http, emulator):
    return (await http("GET", f"{emulator.url}/v2/quiet/health")).status == 200


# ---- requests without an end -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        pytest.param(REQUEST, b"X-More: " + b"x" * 4000 + b"\r\n", id="headers"),
        pytest.param(REQUEST + b"X-Long: ", b"x" * 60_000, id="one header"),
        pytest.param(b"GET /", b"x" * 60_000, id="address"),
        pytest.param(UPLOAD + b"0\r\n", b"X-More: " + b"x" * 4000 + b"\r\n", id="trailers"),
        pytest.param(b"", (REQUEST + b"\r\n") * 1000, id="requests"),
        pytest.param(b"", b"\r\n" * 30_000, id="empty lines"),
    ],
)
async def test_a_request_without_an_end_is_cut_off(connect, http, emulator, head, piece):
    before = memory()
    _, writer = await connect()
    writer.write(head)
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < 200 * MEGABYTE:
            writer.write(piece)
            sent += len(piece)
            await writer.drain()
    assert sent < 200 * MEGABYTE, "the connection was not closed"
    assert memory() - before < ROOM_BYTES
    assert await is_served(http, emulator)


async def test_a_head_that_is_too_large_is_said(connect):
    reader, writer = await connect()
    writer.write(REQUEST + b"X-Long: " + b"x" * 3 * HEAD_LIMIT_BYTES)
    answer = await asyncio.wait_for(reader.read(), 10)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert answer.endswith(b"larger than 128 KiB\n")


async def test_a_large_head_and_some_requests_at_once_are_fine(connect):
    reader, writer = await connect()
    writer.write(
        (REQUEST + b"X-Long: " + b"x" * 60_000 + b"\r\n\r\n") * 4 + (REQUEST + b"\r\n") * (PIPELINE_LIMIT // 2)
    )
    count = 4 + PIPELINE_LIMIT // 2
    answers = b""
    while answers.count(b"HTTP/1.1 200 OK") < count:
        piece = await asyncio.wait_for(reader.read(65536), 20)
        assert piece, answers[-500:]
        answers += piece


async def test_an_endless_body_is_read_to_a_limit_and_not_kept(connect, http, emulator):
    for path in (b"/v2/quiet/run", b"/v2/quiet/runsync", b"/v2/quiet/openai/v1/chat/completions", b"/_/clock"):
        before = memory()
        reader, writer = await connect()
        writer.write(UPLOAD.replace(b"/v2/quiet/run", path))
        answer = asyncio.ensure_future(reader.read(100))
        piece = b"80000\r\n" + b" " * 0x80000 + b"\r\n"
        for _ in range(1000):
            writer.write(piece)
            await writer.drain()
            if answer.done():
                break
        assert (await asyncio.wait_for(answer, 30)).startswith(b"HTTP/1.1 413 "), path
        assert memory() - before < ROOM_BYTES, path
        assert await is_served(http, emulator)
        await hang_up(writer)


async def test_hundreds_of_clients_that_say_nothing_or_stop_in_the_middle_are_in_nobodys_way(connect, http, emulator):
    beginnings = (
        b"",
        b"GET / HTT",
        REQUEST,
        UPLOAD + b"5\r\n{",
        UPLOAD.replace(b"/v2/quiet/", b"/lb/web/") + b"5\r\n{",
    )
    for number in range(300):
        _, writer = await connect()
        writer.write(beginnings[number % len(beginnings)])
    body = {"input": {"do": "echo"}}
    assert (await http("POST", f"{emulator.url}/v2/noisy/runsync", json=body)).body["status"] == "COMPLETED"
    assert (await http("GET", f"{emulator.url}/lb/web/hello")).status == 200
    assert not emulator.platform.jobs("quiet")


# ---- jobs without an end -----------------------------------------------------------------------------------


async def test_ten_thousand_waiting_jobs_slow_nobody_down_and_leave_with_a_purge(http, emulator):
    before = memory()

    async def submit(count):
        for _ in range(count):
            assert (await http("POST", f"{emulator.url}/v2/quiet/run", json={"input": {"n": 1}})).status == 200

    await asyncio.gather(*(submit(500) for _ in range(20)))
    assert (await http("GET", f"{emulator.url}/v2/quiet/health")).body["jobs"]["inQueue"] == 10_000
    assert memory() - before < 200 * MEGABYTE
    answer = await http("POST", f"{emulator.url}/v2/noisy/runsync", json={"input": {"do": "echo"}})
    assert answer.body["status"] == "COMPLETED"
    for path in ("/v2/quiet/requests", "/_/state", "/_/metrics", "/_/events", "/_/jobs?search=x"):
        assert (await http("GET", f"{emulator.url}{path}")).status == 200
    assert (await http("POST", f"{emulator.url}/v2/quiet/purge-queue")).body["removed"] == 10_000
    assert (await http("GET", f"{emulator.url}/v2/quiet/health")).body["jobs"]["inQueue"] == 0


async def test_pings_of_strangers_leave_nothing(http, emulator):
    lanes, count = len(emulator.recorder.lanes.by_worker), emulator.recorder.count
    for number in range(50):
        url = f"{emulator.url}/v2/quiet/ping/stranger-{number}?status=unhealthy&check=a&reason={'b' * 5000}"
        assert (await http("GET", url)).status == 200
    assert len(emulator.recorder.lanes.by_worker) == lanes
    strangers = [entry for entry in emulator.recorder.after(count, limit=1000).entries if "stranger" in str(entry)]
    assert not strangers


# ---- readers that do not read ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/_/events", "/_/metrics"])
async def test_a_watcher_that_never_reads_costs_little(connect, http, emulator, path):
    _, writer = await connect(limit=1)  # reads nothing by itself
    writer.transport.pause_reading()
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode())
    before = memory()
    body = {"input": {"do": "lines", "megabytes": 10}}
    assert (await http("POST", f"{emulator.url}/v2/noisy/runsync", json=body)).body["output"] == "printed"
    assert memory() - before < ALL_LINES_BYTES + ROOM_BYTES


async def test_a_client_that_does_not_read_a_stream_holds_up_its_worker_only(connect, http, emulator, wait_until):
    before = memory()
    _, writer = await connect(limit=1)
    writer.transport.pause_reading()
    writer.write(b"GET /lb/web/large?bytes=150000000&streamed=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await wait_until(lambda: emulator.platform.workers("web")[0].requests)
    assert (await http("GET", f"{emulator.url}/lb/web/hello")).status == 200
    assert memory() - before < ROOM_BYTES
    await hang_up(writer)
    await wait_until(lambda: not emulator.platform.workers("web")[0].requests)


# ---- handlers that print without an end --------------------------------------------------------------------


async def lines_of(http, emulator, job_id):
    lines = (await http("GET", f"{emulator.url}/_/jobs/noisy/{job_id}")).body["lines"]
    return [line["text"] for line in lines]


@pytest.mark.parametrize(("do", "megabytes"), [("lines", 10), ("one_line", 100), ("binary", 10)])
async def test_what_a_handler_floods_is_bounded_and_the_lines_of_other_jobs_stay(http, emulator, do, megabytes):
    url = f"{emulator.url}/v2/noisy/runsync"
    first = (await http("POST", url, json={"input": {"do": "say", "text": f"before {do}"}})).body["id"]
    before = memory()
    flooded = (await http("POST", url, json={"input": {"do": do, "megabytes": megabytes}})).body
    assert flooded["output"] == "printed"
    assert memory() - before < ROOM_BYTES
    assert emulator.recorder.lines_bytes <= 2 * ALL_LINES_BYTES
    last = (await http("POST", url, json={"input": {"do": "say", "text": f"after {do}"}})).body["id"]
    for _ in range(200):
        if any(f"after {do}" in text for text in await lines_of(http, emulator, last)):
            break
        await asyncio.sleep(0.05)
    assert any(f"before {do}" in text for text in await lines_of(http, emulator, first))
    assert any(f"after {do}" in text for text in await lines_of(http, emulator, last))
    assert sum(map(len, await lines_of(http, emulator, flooded["id"]))) < WORKER_LINES_BYTES


async def test_a_handler_that_closes_its_output_goes_on(http, emulator):
    url = f"{emulator.url}/v2/noisy/runsync"
    assert (await http("POST", url, json={"input": {"do": "close_output"}})).body["output"] == "silent now"
    assert (await http("POST", url, json={"input": {"do": "echo"}})).body["status"] == "COMPLETED"


async def test_what_a_worker_left_behind_may_print_for_ever(start_emulator, make_endpoint, events, wait_until):
    """A daemon has left the worker's group and holds its pipe: the worker's end is not waited for longer than that."""
    program = """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                print("daemon", os.getpid(), flush=True)
                end = time.monotonic() + 20
                while time.monotonic() < end:
                    os.write(1, b"still here\\n" * 1000)
            os._exit(0)
        time.sleep(0.5)
    """
    local = make_endpoint("forking", "silent", workers=(1, 1))
    local = dataclasses.replace(local, command=(sys.executable, "-c", textwrap.dedent(program)))
    defaults = PlatformDefaults(failed_starts=1, respawn_delay=60)
    await start_emulator(local, on_event=events, defaults=defaults, shutdown_grace=0.5)
    await wait_until(lambda: "exited" in [event.what for event in events.of_workers("forking")])
    daemon = next(line.text for line in events.lines("forking") if line.text.startswith("daemon"))
    with contextlib.suppress(psutil.NoSuchProcess):  # the closed pipe has ended it
        psutil.Process(int(daemon.split()[1])).kill()


async def test_a_websocket_that_is_fed_and_never_read_is_held_back(start_emulator, http):
    spec = EndpointSpec(
        name="live", kind=Kind.CPU, cpu="cpu3c-1-2", workers=WorkerBounds(1, 1), idle_timeout=600, concurrency=8,
        scaler_type=ScalerType.REQUEST_COUNT, scaler_value=100, load_balanced=True, execution_timeout_ms=330_000,
    )  # fmt: skip
    local = LocalEndpoint(spec, (sys.executable, "-m", "flashkit.worker", "http_app.py:api"), APPS)
    emulator = await start_emulator(local, shutdown_grace=0.5)
    async with aiohttp.ClientSession() as session:
        socket = await session.ws_connect(f"{emulator.url}/lb/live/live/attic")
        socket._response.connection.transport.pause_reading()
        before = memory()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3):
                for _ in range(200):
                    await socket.send_str("x" * MEGABYTE)
        assert memory() - before < 2 * ROOM_BYTES
        assert (await http("GET", f"{emulator.url}/lb/live/pid")).status == 200
        socket._response.connection.transport.abort()


async def test_partial_outputs_that_nobody_reads_are_dropped_with_a_word(start_emulator, make_endpoint, http, events):
    defaults = PlatformDefaults(unread_stream_bytes=1_000)
    emulator = await start_emulator(make_endpoint("unread", "streaming"), defaults=defaults, on_event=events)
    job = (await http("POST", f"{emulator.url}/v2/unread/runsync", json={"input": {"count": 20}})).body
    assert job["status"] == "COMPLETED"
    (line,) = [line for line in events.lines("unread") if "that nobody reads" in line.text]
    assert (line.job_id, line.level, line.worker_id) == (job["id"], "WARN", job["workerId"])
    left = (await http("GET", f"{emulator.url}/v2/unread/stream/{job['id']}")).body["stream"]
    assert 0 < len(left) < 6
    assert left[-1] == {"output": {"number": 19}}
