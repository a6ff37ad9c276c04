"""Clients without a key, of other machines, or with requests that make no sense: refused, with nothing done."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from flashkit.emulator import webhooks
from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.errors import ConfigurationError, InputError
from flashkit.protocol import PlatformDefaults
from flashkit.spec import EndpointSpec, Kind, ScalerType, WorkerBounds
from flashkit.worker.sessions.store import open_store

APPS = Path(__file__).parents[1] / "apps"
KEY = "key-0f1e2d3c4b5a6978"
DEFAULTS = PlatformDefaults(poll_hold=1.0, ping_interval=0.2, webhook_delay=0.05)


@pytest.fixture(scope="module")
async def emulator(tmp_path_factory, make_endpoint, worker_environ, events):
    spec = EndpointSpec(
        name="web", kind=Kind.CPU, cpu="cpu3c-1-2", workers=WorkerBounds(1, 1), idle_timeout=600, concurrency=8,
        scaler_type=ScalerType.REQUEST_COUNT, scaler_value=100, load_balanced=True, execution_timeout_ms=330_000,
        env={"HEALTH_CHECK_PATH": "/up"},
    )  # fmt: skip
    command = ("sh", "-c", f"exec {sys.executable} -m uvicorn plain_server:app --host 127.0.0.1 --port $PORT")
    async with Emulator(
        [
            make_endpoint("quiet", "silent", workers=(1, 1)),
            make_endpoint("acting", "actions"),
            LocalEndpoint(spec, command, APPS),
        ],
        state_dir=tmp_path_factory.mktemp("state"),
        environ=worker_environ,
        on_event=events,
        api_key=KEY,
        seed=1,
        shutdown_grace=0.5,
        defaults=DEFAULTS,
    ) as emulator:
        yield emulator


@pytest.fixture
def with_key():
    return {"Authorization": f"Bearer {KEY}"}


# ---- without the key ---------------------------------------------------------------------------------------

ROUTES = [
    ("POST", "/v2/quiet/run"), ("POST", "/v2/quiet/runsync"), ("GET", "/v2/quiet/status/x"),
    ("GET", "/v2/quiet/stream/x"), ("POST", "/v2/quiet/cancel/x"), ("POST", "/v2/quiet/retry/x"),
    ("POST", "/v2/quiet/purge-queue"), ("GET", "/v2/quiet/health"), ("GET", "/v2/quiet/requests"),
    ("GET", "/v2/quiet/openai/v1/models"), ("POST", "/v2/quiet/openai/v1/chat/completions"), ("GET", "/_/state"),
    ("GET", "/_/events"), ("GET", "/_/metrics"), ("GET", "/_/jobs"), ("GET", "/_/jobs/quiet/x"), ("GET", "/_/clock"),
    ("POST", "/_/clock"), ("POST", "/_/endpoints/quiet/restart"), ("POST", "/_/endpoints/quiet/cold"),
    ("POST", "/_/workers/x/kill"), ("POST", "/_/workers/x/reclaim"), ("POST", "/_/workers/x/freeze"),
    ("POST", "/_/workers/x/thaw"), ("GET", "/_/faults"), ("PUT", "/_/faults"), ("DELETE", "/_/faults"),
    ("GET", "/lb/web/hello"), ("POST", "/lb/web/hello"), ("GET", "/lb/nothing/x"),
]  # fmt: skip
WIRE = [
    ("GET", "job-take/{worker}"), ("GET", "job-take-batch/{worker}"), ("GET", "job-stop/{worker}"),
    ("POST", "job-done/{worker}/{job}"), ("POST", "job-stream/{worker}/{job}"), ("GET", "ping/{worker}"),
]  # fmt: skip


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer wrong", KEY[:-1], f"Basic {KEY}", "ÿ" * 500])
async def test_no_route_does_anything_without_the_key(http, emulator, given):
    headers = {} if given is None else {"Authorization": given}
    for method, path in ROUTES:
        answer = await http(method, f"{emulator.url}{path}", headers=headers, json={"input": 1})
        assert (answer.status, answer.error["code"]) == (401, "unauthorized"), (method, path)
        assert KEY not in str(answer.body)
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            await session.ws_connect(f"{emulator.url}/lb/web/live", headers=headers)


async def test_a_client_without_the_key_takes_no_jobs_and_speaks_for_no_worker(http, emulator, with_key):
    worker = emulator.platform.workers("quiet")[0].id
    run = await http("POST", f"{emulator.url}/v2/quiet/run", json={"input": 1}, headers=with_key)
    job = run.body["id"]
    for method, path in WIRE:
        for query in ("gpu=x&job_in_progress=0", "token=", "token=wrong", "status=unhealthy&check=a&reason=b"):
            url = f"{emulator.url}/v2/quiet/{path.format(worker=worker, job=job)}?{query}"
            answer = await http(method, url, json={"output": "forged"})
            assert (answer.status, answer.error["code"]) == (401, "unauthorized"), path
    status = await http("GET", f"{emulator.url}/v2/quiet/status/{job}", headers=with_key)
    assert status.body == {"id": job, "status": "IN_QUEUE"}
    assert emulator.platform.workers("quiet")[0].failed_check is None


async def test_workers_and_clients_with_the_key_are_served(http, emulator, with_key):
    body = {"input": {"do": "progress", "seconds": 0}}
    answer = await http("POST", f"{emulator.url}/v2/acting/runsync", json=body, headers=with_key)
    assert answer.body["output"] == "done"
    assert (await http("GET", f"{emulator.url}/lb/web/hello", headers=with_key)).status == 200
    for path in ("/", "/dashboard/app.js"):  # what anybody may see has nothing of the jobs
        async with aiohttp.ClientSession() as session, session.get(f"{emulator.url}{path}") as page:
            assert KEY not in await page.text()


async def test_the_key_is_in_nothing_that_is_told_or_logged(http, emulator, with_key, events, *, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        for method, path in ROUTES:
            if not path.startswith("/lb/web"):
                await http(method, f"{emulator.url}{path}?api_key={KEY}", headers=with_key, data=b"{")
        await http("GET", f"{emulator.url}/lb/web/hello", headers=with_key)  # the worker logs the queries that it gets
        async with aiohttp.ClientSession() as session:
            for headers in (with_key, {}):
                with pytest.raises(aiohttp.WSServerHandshakeError):
                    await session.ws_connect(f"{emulator.url}/lb/nothing/x?api_key={KEY}", headers=headers)
        body = {"input": {"do": "fail"}}
        await http("POST", f"{emulator.url}/v2/acting/runsync", json=body, headers=with_key)
        body = {"input": {"do": "exit_hard"}}
        await http("POST", f"{emulator.url}/v2/acting/runsync", json=body, headers=with_key)
    told = [await http("GET", f"{emulator.url}/_/{name}", headers=with_key) for name in ("events", "metrics", "state")]
    printed = capfd.readouterr()
    for text in (str(told), str(events.all), caplog.text, printed.out, printed.err):
        assert KEY not in text
        assert emulator._token not in text


# ---- other names, other pages ------------------------------------------------------------------------------


async def test_every_route_refuses_other_names_and_pages_of_other_machines(http, emulator, with_key):
    worker = emulator.platform.workers("quiet")[0].id
    wire = [(method, f"/v2/quiet/{path.format(worker=worker, job='x')}") for method, path in WIRE]
    for method, path in (*ROUTES, *wire, ("GET", "/"), ("GET", "/dashboard"), ("GET", "/nothing")):
        headers = {**with_key, "host": "evil.example"}
        answer = await http(method, f"{emulator.url}{path}", headers=headers, json={"input": 1})
        assert (answer.status, answer.error["code"]) == (403, "host_refused"), path
    for method, path in ROUTES:
        for origin in ("https://evil.example", "null", "http://localhost.evil.example", "file://"):
            headers = {**with_key, "origin": origin}
            answer = await http(method, f"{emulator.url}{path}", headers=headers, json={"input": 1})
            assert (answer.status, answer.error["code"]) == (403, "origin_refused"), (path, origin)


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"origin": "https://evil.example"}])
async def test_no_websocket_is_opened_for_them_either(emulator, with_key, headers):
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
            await session.ws_connect(f"{emulator.url}/lb/web/live", headers={**with_key, **headers})


async def test_faults_are_not_changed_by_a_page_of_another_port(http, emulator, with_key):
    headers = {**with_key, "origin": "http://localhost:3000"}
    for method in ("PUT", "DELETE"):
        answer = await http(method, f"{emulator.url}/_/faults", headers=headers, json={"faults": ["kill=1"]})
        assert (answer.status, answer.error["code"]) == (403, "origin_refused")
    assert not emulator.faults.plan.faults


# ---- requests that make no sense ---------------------------------------------------------------------------

POST = b"POST /v2/quiet/run HTTP/1.1\r\nHost: localhost\r\n"
FOR_WORKER = b" HTTP/1.1\r\nHost: web.localhost\r\nAuthorization: " + KEY.encode() + b"\r\n\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        POST + b"Content-Length: -5\r\n\r\n",
        POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        POST + b"X-Split: a\rb\r\n\r\n",
        b"GET @evil.example/" + FOR_WORKER,
        b"GET :80@evil.example/" + FOR_WORKER,
        b"GET *@evil.example/" + FOR_WORKER,
        b"CONNECT evil.example:80" + FOR_WORKER,
        b"GET *" + FOR_WORKER,
        b"OPTIONS *" + FOR_WORKER,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_a_request_that_two_readers_could_read_differently_is_refused(talk, http, emulator, request_bytes):
    answer = await talk(request_bytes)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert (await http("GET", f"{emulator.url}/")).status == 200


@pytest.mark.parametrize(
    "name",
    ["../__init__.py", "%2e%2e/__init__.py", "..%2f..%2fserver.py", "%2fetc/passwd", "/etc/passwd", "__init__.py",
     "....//__init__.py", "%00", "app.js%00.txt", "..%5c__init__.py", "static/app.js"],
)  # fmt: skip
async def test_the_pages_files_lead_nowhere_else(talk, name):
    answer = await talk(f"GET /dashboard/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"import" not in answer
    assert b"root:" not in answer


@pytest.mark.parametrize(
    "job_id", ["%00", "%0d%0aX-Evil:%201", "%ff%fe", "%ed%a0%80", "..", "%F0%9F%92%A5", "a" * 9000]
)
async def test_odd_ids_are_ids_of_no_job(http, emulator, with_key, job_id):
    for method, action in (("GET", "status"), ("GET", "stream"), ("POST", "cancel"), ("POST", "retry")):
        url = aiohttp.client.URL(f"{emulator.url}/v2/quiet/{action}/{job_id}", encoded=True)
        answer = await http(method, url, headers=with_key)
        assert answer.status == 404
        assert answer.error["code"] in ("job_not_found", "route_unknown")
        assert "X-Evil" not in answer.headers
    answer = await http(
        "GET", aiohttp.client.URL(f"{emulator.url}/_/jobs/quiet/{job_id}", encoded=True), headers=with_key
    )
    assert answer.status == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"input": 1e400}', 400), (b'{"input": -Infinity}', 400), (b'{"input": "\\ud800"}', 400),
        (b'\xef\xbb\xbf{"input": 1}', 400), (b'{"input": ' + b"9" * 400 + b"}", 400), (b"\x00" * 1000, 400),
        (b'{"input": 1, "s3Config": ' + b"[" * 260 + b"]" * 260 + b"}", 400),
        (b'{"input": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}", 400),
        (b'{"input": [' + b"[]," * 500_000 + b"1]}", 200), (b'{"input": {"\\u0000": "\\u0000"}}', 200),
        (b'{"input": 1, "input": 2, "id": "mine", "status": "COMPLETED"}', 200),
        (b'{"input": 123456789012345678901234567890}', 200),
    ],
)  # fmt: skip
async def test_json_that_is_meant_to_hurt_is_refused_or_taken_as_it_is(http, emulator, with_key, body, status):
    answer = await http("POST", f"{emulator.url}/v2/quiet/run", data=body, headers=with_key)
    assert answer.status == status
    if status == 200:
        assert answer.body["id"] != "mine"
        job = answer.body["id"]
        for path in (
            f"v2/quiet/status/{job}",
            f"_/jobs/quiet/{job}?preview=100",
            "_/jobs?search=x",
            "v2/quiet/requests",
        ):
            assert (await http("GET", f"{emulator.url}/{path}", headers=with_key)).status == 200
        await http("POST", f"{emulator.url}/v2/quiet/purge-queue", headers=with_key)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        *(("PUT", "faults", body) for body in (
            b'{"faults": "x"}', b'{"faults": [1]}', b'{"faults": {"a": 1}}', b'{"faults": ["kill=1e999"]}',
            b'{"faults": ["error=nan"]}', b'{"faults": ["slow=0B/s"]}', b'{"faults": ["error=1@9s-1s"]}',
            b'{"seed": 1e30}', b'{"seed": true}', b'{"enabled": 1}', b"[]", b"{", b'{"faults": []}' + b" " * 70_000,
        )),
        *(("POST", "clock", body) for body in (
            b'{"advance": 1e308}', b'{"advance": -1}', b'{"advance": 1e400}', b'{"advance": "1"}', b'{"speed": true}',
            b'{"speed": -0.1}', b'{"advance": null}', b"[]", b"{}", b'{"advance": 1, "then": 2}',
        )),
    ],
)  # fmt: skip
async def test_faults_and_the_clock_take_no_nonsense(http, emulator, with_key, *, method, path, body):
    speed = emulator.clock.speed
    answer = await http(method, f"{emulator.url}/_/{path}", data=body, headers=with_key)
    assert answer.status in (400, 413)
    assert answer.error["message"]
    assert (emulator.clock.speed, emulator.faults.plan.faults) == (speed, ())


# ---- webhooks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["http://0.0.0.0/", "http://[::]/", "http://0/", "http://10.0.0.1/", "http://169.254.169.254/", "http://[fe80::1]/",
     "http://[::ffff:8.8.8.8]/", "http://2130706433/", "http://0x7f.0.0.1/", "http://127.1/", "http://localhost./",
     "http://127.0.0.1.evil.example/", "http://127.0.0.1@evil.example/", "http://127.0.0.1:80@evil.example/",
     "http://127.0.0.1\\@evil.example/", "http://evil.example\\@127.0.0.1/", "http://127.0.0.1%2f@evil.example/",
     "http://evil.example#@127.0.0.1/", "http://evil.example?@127.0.0.1/", "http://127.0.0.1 .evil.example/",
     "http://127.0.0.1\n.evil.example/", "http://notlocalhost/", "//127.0.0.1/", "http:///x", "http://[::1",
     "http://127.0.0.1:99999/", "javascript:alert(1)", "file:///etc/passwd", "unix:///tmp/x", ["http://127.0.0.1/"]],
)  # fmt: skip
async def test_a_webhook_that_leads_elsewhere_is_refused(http, emulator, with_key, url):
    body = {"input": 1, "webhook": url}
    answer = await http("POST", f"{emulator.url}/v2/quiet/run", json=body, headers=with_key)
    assert answer.status == 400
    assert answer.error["details"] == {"field": "webhook"}
    assert not [job for job in emulator.platform.jobs("quiet") if job.webhook]


@pytest.mark.parametrize(
    "url", ["http://LOCALHOST:1/", "http://[::1]:1/x", "http://127.9.9.9/", "https://a.localhost/"]
)
def test_a_webhook_of_this_machine_is_fine(url):
    assert webhooks.check_webhook(url, allow_remote=False) == url


async def test_a_name_that_turns_out_to_lead_elsewhere_gets_nothing(caplog):
    """What `hooks.localhost` is, the resolver says; this one has another opinion than most."""

    class Elsewhere(aiohttp.abc.AbstractResolver):
        async def resolve(self, host, port=0, family=socket.AF_INET):
            return [{"hostname": host, "host": "192.0.2.1", "port": port, "family": family, "proto": 0, "flags": 0}]

        async def close(self):
            """Hold nothing."""

    sender = webhooks.WebhookSender(DEFAULTS)
    try:
        assert "Cannot connect" not in await sender._post("http://127.0.0.1:9/", b"{}")
        sender._session._connector._resolver = Elsewhere()
        assert "192.0.2.1 is not this machine" in await sender._post("http://hooks.localhost:9/", b"{}")
    finally:
        await sender.close()


async def test_secrets_in_a_webhooks_url_are_not_logged(
    http, emulator, with_key, caplog, *, wait_until, unused_tcp_port
):
    hook = f"http://me:pass-word@127.0.0.1:{unused_tcp_port}/hook?token=to-ken"
    body = {"input": 1, "webhook": hook}
    job = (await http("POST", f"{emulator.url}/v2/quiet/run", json=body, headers=with_key)).body["id"]
    await http("POST", f"{emulator.url}/v2/quiet/cancel/{job}", headers=with_key)
    await wait_until(lambda: "try 3" in caplog.text)
    assert f"http://127.0.0.1:{unused_tcp_port}/hook" in caplog.text
    assert "pass-word" not in caplog.text
    assert "to-ken" not in caplog.text


async def test_hundreds_of_webhooks_to_a_receiver_that_does_not_answer_hold_up_no_job(http, emulator, with_key):
    release = asyncio.Event()

    async def wait(request):
        await release.wait()
        return web.Response()

    application = web.Application()
    application.router.add_post("/", wait)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        body = {"input": 1, "webhook": f"http://127.0.0.1:{runner.addresses[0][1]}/"}
        for _ in range(300):
            await http("POST", f"{emulator.url}/v2/quiet/run", json=body, headers=with_key)
        await http("POST", f"{emulator.url}/v2/quiet/purge-queue", headers=with_key)
        work = {"input": {"do": "echo", "value": 7}}
        answer = await http("POST", f"{emulator.url}/v2/acting/runsync", json=work, headers=with_key)
        assert answer.body["output"] == 7
    finally:
        release.set()
        await runner.cleanup()


def test_what_is_not_a_webhook_is_said_with_its_value():
    with pytest.raises(InputError, match="webhook=7 is not a string"):
        webhooks.check_webhook(7, allow_remote=True)


@pytest.mark.parametrize(
    "url", ["reids://me:pass-word@127.0.0.1/0", "http://me:pass-word@127.0.0.1?password=pass-word"]
)
def test_a_mistyped_store_is_refused_without_its_password(url):
    with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1.* is not a store for sessions") as caught:
        open_store(url)
    assert "pass-word" not in str(caught.value.report.to_dict())
