"""Load-balanced workers as processes: routes, streams, WebSockets, mounted applications, start and end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.ports import free_port
from tests.worker.http_worker import HttpWorker, until


@contextlib.asynccontextmanager
async def running(target: str, **options: Any) -> AsyncIterator[HttpWorker]:
    worker = HttpWorker(target, **options)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()


@pytest.fixture(scope="module")
async def api():
    async with running("http_app.py:api") as worker:
        await worker.wait_for_ping(200)
        yield worker


@pytest.fixture(scope="module")
async def site():
    async with running("http_app.py:site") as worker:
        await worker.wait_for_ping(200)
        yield worker


async def ask(worker, method, path, **options):
    async with worker.http.request(method, path, **options) as response:
        return response.status, await response.json()


async def test_path_and_query_parameters_get_their_types(api):
    status, body = await ask(api, "GET", "/items/3?q=x&tags=a&tags=b&day=2026-11-21")
    assert status == 200
    assert body == {"item_id": 3, "q": "x", "tags": ["a", "b"], "day": "2026-11-21", "model": "loaded"}


async def test_a_single_object_is_the_whole_body(api):
    assert await ask(api, "POST", "/items", json={"name": "lamp"}) == (200, {"name": "lamp", "price": 1.0})


async def test_beside_an_object_the_other_parameters_come_from_path_and_query(api):
    answer = await ask(api, "PUT", "/items/7?dry_run=true", json={"name": "lamp"})
    assert answer == (200, {"item_id": 7, "name": "lamp", "dry_run": True})


async def test_without_an_object_the_body_has_the_parameters_by_name(api):
    assert await ask(api, "POST", "/add", json={"a": 2, "b": 3}) == (200, 5)
    assert await ask(api, "POST", "/add?b=5", json={"a": 2}) == (200, 7)


async def test_open_ended_parameters_take_any_name(api):
    assert await ask(api, "PATCH", "/more", json={"x": 1, "y": 2}) == (200, {"x": 1, "y": 2})


@pytest.mark.parametrize(
    ("method", "path", "body", "words"),
    [
        ("GET", "/items/three", None, "`item_id` is 'three'"),
        ("GET", "/items/3?qq=x", None, "did you mean `q`?"),
        ("POST", "/items", b'{"price": 2}', "`name` is missing"),
        ("POST", "/items", b"{oops", "the body is not JSON"),
        ("POST", "/add", b"[1]", "must be a JSON object, not list"),
        ("POST", "/add", None, "`a` is missing"),
    ],
)
async def test_a_request_that_does_not_fit_is_a_400_that_says_why(api, method, path, body, words):
    status, answer = await ask(api, method, path, data=body)
    assert status == 400
    assert answer["error"]["code"] == "input_invalid"
    assert words in answer["error"]["message"]


async def test_a_function_may_take_the_request_itself(api):
    status, body = await ask(api, "POST", "/echo", data=b"x" * 1000, headers={"content-type": "text/x"})
    assert (status, body["bytes"], body["type"]) == (200, 1000, "text/x")


async def test_a_response_of_the_users_own_is_sent_as_it_is(api):
    async with api.http.get("/files/a/b.txt") as response:
        assert (await response.text(), response.headers["x-made-by"]) == ("content of a/b.txt", "route")
    async with api.http.get("/stream") as response:
        assert await response.text() == "part part part "


async def test_nothing_is_returned_as_null(api):
    assert await ask(api, "DELETE", "/items/3") == (200, None)


async def test_an_unknown_path_and_a_wrong_method_are_told(api):
    status, body = await ask(api, "GET", "/nothing")
    assert (status, body["error"]["code"]) == (404, "http_error")
    assert (await ask(api, "GET", "/add"))[0] == 405


async def test_yielded_values_come_as_events_before_the_end(api):
    async with api.http.post("/chat", json={"text": "one two", "pause": 1.0}) as response:
        assert response.content_type == "text/event-stream"
        assert await response.content.readline() == b'data: "one"\n'
        assert not response.content.at_eof()
        assert await response.content.read() == b'\ndata: "two"\n\n'


async def test_a_client_that_accepts_lines_gets_lines(api):
    headers = {"accept": "application/x-ndjson"}
    async with api.http.get("/letters?text=ab", headers=headers) as response:
        assert (response.content_type, await response.read()) == ("application/x-ndjson", b'"a"\n"b"\n')
    async with api.http.get("/letters?text=", headers=headers) as response:
        assert (response.status, await response.read()) == (200, b"")


async def test_an_error_before_the_first_value_has_its_status_and_a_later_one_is_the_last_event(api):
    status, body = await ask(api, "POST", "/chat", json={"text": "one", "fail_at": 0})
    assert (status, body["error"]["type"]) == (500, "ValueError")
    async with api.http.post("/chat", json={"text": "one two", "fail_at": 1}) as response:
        first, last, _ = (await response.text()).split("\n\n")
        assert first == 'data: "one"'
        assert last.startswith('event: error\ndata: {"error": ')
        assert "lost the thread" in last


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        ("input", 400, "input_invalid"),
        ("status", 409, "http_error"),
        ("output", 500, "output_invalid"),
        ("cancel", 500, "handler_error"),
        ("exit", 500, "handler_exit"),
        ("raise", 500, "handler_error"),
    ],
)
async def test_what_a_function_raises_decides_the_status(api, how, status, code):
    async with api.http.get(f"/fail?how={how}", headers={"x-request-id": "mine"}) as response:
        error = (await response.json())["error"]
        assert (response.status, error["code"], response.headers["x-request-id"]) == (status, code, "mine")
        assert error["request_id"] == "mine"
        assert how != "status" or response.headers["retry-after"] == "3"


async def test_a_request_over_the_endpoints_time_is_a_504_and_stopped(api, tmp_path):
    mark = tmp_path / "mark"
    status, body = await ask(api, "GET", f"/sleep?seconds=60&mark={mark}")
    assert (status, body["error"]["code"]) == (504, "request_timed_out")
    await until(mark.exists)


async def test_a_stream_over_the_endpoints_time_ends_with_an_error(api):
    async with api.http.post("/chat", json={"text": "a b c d e f g h", "pause": 1}) as response:
        *_, last, _ = (await response.text()).split("\n\n")
        assert last.startswith("event: error\n")
        assert "request_timed_out" in last


async def test_a_response_of_the_users_own_that_fails_in_the_middle_is_broken_off(api):
    async with api.http.get("/raw-fail") as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_a_client_that_leaves_in_the_middle_of_its_body_harms_nobody(api):
    _, writer = await asyncio.open_connection("127.0.0.1", api.port)
    head = b"POST /items HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
    writer.write(head + b'{"name": ')
    await writer.drain()
    writer.close()
    assert (await ask(api, "GET", "/pid"))[0] == 200


async def test_a_client_that_hangs_up_stops_its_request(api, tmp_path):
    mark = tmp_path / "mark"
    with pytest.raises(TimeoutError):
        await ask(api, "GET", f"/sleep?seconds=4&mark={mark}", timeout=aiohttp.ClientTimeout(total=0.5))
    await until(mark.exists)


async def test_more_requests_than_the_concurrency_wait_for_a_place(api):
    answers = await asyncio.gather(*(ask(api, "GET", "/block?seconds=0.3") for _ in range(8)))
    assert [status for status, _ in answers] == [200] * 8


async def test_a_body_over_30_mb_is_refused(api):
    async def body():
        for _ in range(31):
            yield b" " * 1024 * 1024

    status, answer = await ask(api, "POST", "/items", data=body())
    assert (status, answer["error"]["code"]) == (413, "body_too_large")


async def test_a_websocket_talks_in_both_directions(api):
    async with api.http.ws_connect("/live/kitchen?times=2") as socket:
        await socket.send_str("hello")
        assert [await socket.receive_str() for _ in range(2)] == ["kitchen: hello"] * 2
        await socket.send_str("end")
        assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 1000


async def test_a_websocket_whose_function_fails_is_closed_with_the_reason(api):
    async with api.http.ws_connect("/live/kitchen") as socket:
        await socket.send_str("fail")
        message = await socket.receive()
        assert (message.data, message.extra) == (1011, "socket trouble")
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await api.http.ws_connect("/live/kitchen?times=many")
    assert caught.value.status == 403


async def test_prints_carry_the_id_of_their_request():
    async with running("http_app.py:api", RUNPOD_ENDPOINT_ID="api") as worker:
        await worker.wait_for_ping(200)
        async with worker.http.get("/pid", headers={"x-request-id": "r-1"}):
            pass
        await until(lambda: '{"requestId": "r-1", "message": "request r-1"' in worker.output)


async def test_a_mounted_application_runs_with_its_lifespan_below_the_routes(site):
    assert await ask(site, "GET", "/hello/ada") == (200, {"hello": "ada", "secret": "from lifespan"})
    assert await ask(site, "GET", "/own") == (200, "the route goes first")
    async with site.http.get("/plain/page") as response:
        assert await response.text() == "/plain/page"
    async with site.http.ws_connect("/ws") as socket:
        assert await socket.receive_json() == {"secret": "from lifespan"}


async def test_ping_is_204_until_setup_is_over_and_other_requests_are_refused(tmp_path):
    gate = tmp_path / "gate"
    async with running("http_app.py:api", GATE=str(gate)) as worker:
        await worker.wait_for_ping(204)
        status, body = await ask(worker, "GET", "/items/3")
        assert (status, body["error"]["code"]) == (503, "worker_not_ready")
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await worker.http.ws_connect("/live/kitchen")
        gate.touch()
        await worker.wait_for_ping(200)


async def test_a_worker_that_is_told_to_leave_while_it_starts_leaves(tmp_path):
    async with running("http_app.py:api", GATE=str(tmp_path / "never")) as worker:
        await worker.wait_for_ping(204)
        worker.terminate()
        assert await worker.exit_code() == 0


async def test_a_worker_that_is_not_fit_says_so_until_it_is_again():
    async with running("http_app.py:api") as worker:
        await worker.wait_for_ping(200)
        await ask(worker, "POST", "/health", json={"fit": False})
        await worker.wait_for_ping(503)
        await ask(worker, "POST", "/health", json={"fit": True})
        await worker.wait_for_ping(200)


async def test_a_worker_that_is_told_to_leave_answers_what_it_has_first():
    async with running("http_app.py:api") as worker:
        await worker.wait_for_ping(200)
        async with worker.http.ws_connect("/live/kitchen") as socket:
            slow = asyncio.ensure_future(ask(worker, "POST", "/chat", json={"text": "a b c", "pause": 0.5}))
            streaming = asyncio.ensure_future(ask(worker, "GET", "/sleep?seconds=1.5"))
            await asyncio.sleep(0.3)
            worker.terminate()
            await worker.wait_for_ping(503)
            assert (await ask(worker, "GET", "/pid"))[0] == 503
            assert await streaming == (200, "slept")
            with pytest.raises(aiohttp.ContentTypeError):  # it is a stream, and was sent to its end
                await slow
            message = await socket.receive()
            assert message.data == 1012
        assert await worker.exit_code() == 0
        assert "teardown was called" in worker.output


async def test_a_second_ctrl_c_ends_it_at_once_and_a_second_sigterm_does_not():
    async with running("http_app.py:api") as worker:
        await worker.wait_for_ping(200)
        slow = asyncio.ensure_future(ask(worker, "GET", "/sleep?seconds=4"))
        await asyncio.sleep(0.3)
        worker.terminate()
        await worker.wait_for_ping(503)
        worker.terminate()
        await asyncio.sleep(0.3)
        await worker.wait_for_ping(503)
        worker.process.send_signal(signal.SIGINT)
        assert await worker.exit_code(seconds=3) == -signal.SIGINT
        with pytest.raises(aiohttp.ClientError):
            await slow


async def test_a_thread_that_goes_on_does_not_keep_the_process():
    async with running("http_app.py:api") as worker:
        await worker.wait_for_ping(200)
        with pytest.raises(TimeoutError):
            await ask(worker, "POST", "/stubborn", timeout=aiohttp.ClientTimeout(total=0.5))
        worker.terminate()
        assert await worker.exit_code(seconds=10) == 0
        assert "still running in a thread" in worker.output


@pytest.mark.parametrize(
    ("name", "words"), [("broken", "the GPU has fallen off the bus"), ("unstartable", "no database")]
)
async def test_a_worker_that_cannot_be_set_up_ends_with_the_reason(name, words):
    async with running(f"http_app.py:{name}") as worker:
        assert await worker.exit_code() == 1
        assert words in worker.output


async def test_the_health_port_may_be_another_one():
    port = free_port()
    async with running("http_app.py:site", PORT_HEALTH=str(port)) as worker:
        await worker.wait_for_ping(200, url=f"http://127.0.0.1:{port}")
        assert (await ask(worker, "GET", "/own"))[0] == 200
        worker.terminate()
        assert await worker.exit_code() == 0
        assert "lifespan ended" in worker.output


async def test_a_port_that_is_taken_is_told(site):
    async with running("http_app.py:site", PORT=str(site.port)) as worker:
        assert await worker.exit_code() == 2
        assert f"cannot listen on 127.0.0.1 port {site.port}" in worker.output


async def test_a_route_with_a_type_that_cannot_be_checked_is_told(tmp_path):
    app = tmp_path / "app.py"
    app.write_text(
        "from flashkit import cpu_endpoint\napi = cpu_endpoint(name='api')\n"
        "@api.get('/')\ndef index(x: 'Missing') -> None: ...\n"
    )
    async with running(f"{app}:api") as worker:
        assert await worker.exit_code() == 2
        assert "annotated with 'Missing', which is not defined" in worker.output


async def test_an_app_that_serves_itself_is_a_worker_too(tmp_path):
    app = tmp_path / "app.py"
    app.write_text(
        "import flashkit\napi = flashkit.cpu_endpoint(name='api')\n"
        "@api.get('/')\ndef index() -> str:\n    return 'served'\n"
        "if __name__ == '__main__':\n    flashkit.serve(api)\n    print('came to its end')\n"
    )
    async with running(str(app), program=()) as worker:
        await worker.wait_for_ping(200)
        assert await ask(worker, "GET", "/") == (200, "served")
        worker.terminate()
        assert await worker.exit_code() == 0
        assert "came to its end" in worker.output


async def test_a_missing_web_server_is_told_with_the_extra_that_has_it():
    code = """
import sys
sys.modules["uvicorn"] = None
from flashkit.worker.main import main
sys.exit(main(sys.argv[1:]))
"""
    async with running("http_app.py:site", program=("-c", code)) as worker:
        assert await worker.exit_code() == 2
        assert "needs the module 'uvicorn'" in worker.output
        assert "flashkit-serverless[http]" in worker.output


async def test_a_port_that_is_none_is_told():
    async with running("http_app.py:site", PORT="tcp://x") as worker:
        assert await worker.exit_code() == 2
        assert "PORT='tcp://x' is not a port" in worker.output
