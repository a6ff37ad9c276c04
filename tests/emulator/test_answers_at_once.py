"""Requests of workers that are answered where their bytes are read: as if they had gone the long way."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time

import orjson
import pytest

from flashkit import loop_server
from flashkit.emulator import connections
from flashkit.emulator.connections import BreakableProtocol
from flashkit.emulator.faults import parse_faults
from flashkit.emulator.jobs import JobRequest
from flashkit.emulator.server import Emulator
from flashkit.emulator.worker_wire import WorkerWire
from flashkit.protocol import PlatformDefaults

HEALTH = b"GET /v2/quiet/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture(scope="module")
async def emulator(tmp_path_factory, worker_environ, events, make_endpoint):
    async with Emulator(
        [make_endpoint("quiet", "silent", workers=(1, 1))],
        state_dir=tmp_path_factory.mktemp("state"),
        environ=worker_environ,
        on_event=events,
        shutdown_grace=0.5,
        defaults=PlatformDefaults(poll_hold=0.3),
    ) as emulator:
        yield emulator


@pytest.fixture
def worker_id(emulator):
    worker_id = emulator.platform.workers("quiet")[0].id
    yield worker_id
    emulator.dispatcher.take("quiet", worker_id, limit=1, job_in_progress=False)  # it has let go of all it had


@pytest.fixture
async def job(emulator, worker_id):
    """A job that the worker has."""
    job = emulator.submit("quiet", JobRequest(input=1))
    emulator.dispatcher.take("quiet", worker_id, limit=1, job_in_progress=True)
    assert job.status == "IN_PROGRESS"
    yield job
    emulator.dispatcher.apply(emulator.platform.cancel, "quiet", job.id)


def post(path, value, *headers, version="1.1", host="127.0.0.1"):
    body = value if isinstance(value, bytes) else orjson.dumps(value)
    lines = [f"POST {path} HTTP/{version}", f"Host: {host}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def part(worker_id, job, value, *headers, **options):
    return post(f"/v2/quiet/job-stream/{worker_id}/{job.id}?gpu=local", {"output": value}, *headers, **options)


def get(path, *headers):
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]).encode()


def in_pieces(request, size):
    return [request[start : start + size] for start in range(0, len(request), size)]


@pytest.mark.parametrize("size", [10_000, 70])
@pytest.mark.parametrize("body", [b'{"output": 1}', b"no JSON", b"[1]", b'{"output": NaN}', b""])
async def test_a_result_has_the_same_effect_and_answer_whole_and_in_pieces(talk, worker_id, job, *, size, body):
    request = post(f"/v2/quiet/job-done/{worker_id}/{job.id}", body)
    answer = await talk(*in_pieces(request, size))
    head, _, said = answer.partition(b"\r\n\r\n")
    is_fine = body.startswith(b'{"output": 1')
    assert head.startswith(b"HTTP/1.1 200 OK" if is_fine else b"HTTP/1.1 400 Bad Request")
    assert b"content-type: application/json" in head
    assert b"content-length: %d" % len(said) in head
    assert job.status == ("COMPLETED" if is_fine else "FAILED")
    if not is_fine:
        assert orjson.loads(said)["error"]["request_id"] == job.id
        assert "the worker's result was refused" in job.error


@pytest.mark.usefixtures("nothing_takes_the_long_way")
async def test_posts_that_came_whole_do_not_take_the_long_way(talk, worker_id, job):
    assert await talk(part(worker_id, job, 1)) == OK
    assert await talk(post(f"/v2/quiet/job-done/{worker_id}/{job.id}", {"output": 1})) == OK


async def test_requests_that_come_together_are_answered_in_their_order(talk, emulator, worker_id, job):
    """Those before and after one that takes the long way, too."""
    status = get(f"/v2/quiet/status/{job.id}")
    parts = [part(worker_id, job, number) for number in range(4)]
    answer = await talk(parts[0] + parts[1] + status + parts[2] + parts[3])
    assert answer.startswith(OK + OK + b"HTTP/1.1 200 OK")
    assert answer.endswith(OK + OK)
    assert job.id.encode() in answer
    assert emulator.dispatcher.apply(emulator.platform.read_stream, "quiet", job.id) == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [60_000, 200_000, 400_000])
async def test_a_large_part_is_taken_as_well(talk, emulator, worker_id, job, size):
    assert await talk(part(worker_id, job, "a" * size)) == OK
    assert emulator.dispatcher.apply(emulator.platform.read_stream, "quiet", job.id) == ["a" * size]


async def test_a_part_whose_sender_hangs_up_in_the_middle_is_not_taken(emulator, worker_id, job):
    host, port = emulator.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(part(worker_id, job, "half")[:-2])
    await asyncio.sleep(0.05)
    writer.close()
    await asyncio.sleep(0.05)
    assert emulator.dispatcher.apply(emulator.platform.read_stream, "quiet", job.id) == []


@pytest.mark.parametrize(
    ("headers", "version"),
    [(("Connection: close",), "1.1"), ((), "1.0"), (("Connection: keep-alive",), "1.0")],
)
async def test_who_wants_no_more_of_the_connection_sees_its_end(talk, worker_id, job, headers, version):
    answer = await talk(part(worker_id, job, 1, *headers, version=version))
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: close" in answer
    assert answer.endswith(b"{}")


async def test_who_asks_before_sending_a_body_is_told_to_go_on(talk, worker_id, job):
    request = part(worker_id, job, 1, "Expect: 100-continue")
    answer = await talk(*in_pieces(request, len(request) - 13))
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


@pytest.fixture
async def waiting(emulator):
    """A job in the queue."""
    job = emulator.submit("quiet", JobRequest(input={"a": 1}))
    yield job
    emulator.dispatcher.apply(emulator.platform.cancel, "quiet", job.id)


@pytest.fixture
def nothing_takes_the_long_way(monkeypatch):
    async def fail(*_args):
        raise AssertionError("taken")

    monkeypatch.setattr(WorkerWire, "serve", fail)


def poll(worker_id, *headers, action="job-take", query="job_in_progress=0"):
    return get(f"/v2/quiet/{action}/{worker_id}?{query}", *headers)


def connect(emulator):
    host, port = emulator.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)))


async def test_a_poll_is_held_while_there_is_no_job(talk, worker_id):
    assert (await talk(poll(worker_id))).startswith(b"HTTP/1.1 204 No Content\r\n")


@pytest.mark.usefixtures("nothing_takes_the_long_way")
@pytest.mark.parametrize("action", ["job-take", "job-take-batch"])
async def test_a_poll_for_which_there_is_a_job_does_not_take_the_long_way(talk, worker_id, waiting, action):
    answer = await talk(poll(worker_id, action=action, query="batch_size=5&job_in_progress=0"))
    described = {"id": waiting.id, "input": {"a": 1}}
    assert answer.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
    assert orjson.loads(answer.partition(b"\r\n\r\n")[2]) == ([described] if action == "job-take-batch" else described)
    assert waiting.status == "IN_PROGRESS"


@pytest.mark.parametrize("size", [10_000, 40])
async def test_a_poll_has_the_same_answer_whole_and_in_pieces(talk, worker_id, waiting, size):
    answer = await talk(*in_pieces(poll(worker_id), size))
    assert orjson.loads(answer.partition(b"\r\n\r\n")[2])["id"] == waiting.id


@pytest.mark.parametrize("seconds", [0.0, 0.05])
@pytest.mark.parametrize("size", [10_000, 40])
@pytest.mark.parametrize("behind", [b"", HEALTH])
async def test_a_poll_whose_sender_has_hung_up_already_takes_no_job(
    emulator, worker_id, waiting, *, seconds, size, behind, caplog
):
    """Poll and end are there together: the loop is busy meanwhile. Or the end comes just after the poll."""
    connection = connect(emulator)
    for piece in in_pieces(poll(worker_id) + behind, size):
        connection.sendall(piece)
        time.sleep(0.001)
    if seconds:
        await asyncio.sleep(seconds)
    connection.close()
    await asyncio.sleep(0.2)
    assert waiting.status == "IN_QUEUE"
    assert waiting.attempt == (1 if seconds else 0)
    assert caplog.records == []  # nor does the server miss an answer


@pytest.mark.parametrize("number", [1, 2])
async def test_an_answer_that_the_kernel_could_not_deliver_puts_its_job_back(
    emulator, worker_id, waiting, monkeypatch, number
):
    """The event loop sees an end like any other: only the socket knows that the answer was refused."""
    monkeypatch.setattr(BreakableProtocol, "has_client", lambda self: not self.transport.is_closing())
    connection = connect(emulator)
    first, last = in_pieces(poll(worker_id), 60)
    if number == 2:  # as two reads, it goes the long way
        connection.sendall(first)
        await asyncio.sleep(0.02)
    connection.sendall(last if number == 2 else first + last)
    connection.close()
    await asyncio.sleep(0.2)
    assert waiting.status == "IN_QUEUE"
    assert waiting.attempt == 1  # it was handed out


@pytest.mark.parametrize("option", [None, 999])
async def test_a_kernel_that_does_not_tell_has_the_client_there(talk, worker_id, waiting, monkeypatch, option):
    monkeypatch.setattr(connections, "_TCP_INFO", option)
    assert waiting.id.encode() in await talk(poll(worker_id))


async def test_who_polls_again_has_read_the_answer_before(emulator, worker_id, waiting):
    connection = connect(emulator)
    connection.sendall(poll(worker_id))
    await asyncio.sleep(0.05)
    assert waiting.id.encode() in connection.recv(10_000)
    connection.sendall(poll(worker_id, query="job_in_progress=1"))
    await asyncio.sleep(0.05)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its end is a reset
    connection.close()
    await asyncio.sleep(0.05)
    assert waiting.status == "IN_PROGRESS"


async def test_who_has_read_the_job_and_hangs_up_keeps_it(talk, worker_id, waiting):
    assert waiting.id.encode() in await talk(poll(worker_id))
    await asyncio.sleep(0.1)
    assert waiting.status == "IN_PROGRESS"


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("behind", [HEALTH, b"GET /v2/"])
async def test_who_sends_something_behind_a_poll_has_not_read_its_answer(emulator, worker_id, waiting, method, behind):
    connection = connect(emulator)
    request = poll(worker_id).replace(b"GET", method.encode(), 1)
    connection.sendall(request + behind)
    await asyncio.sleep(0.1)
    assert waiting.status == "IN_PROGRESS"
    connection.close()  # with the answer unread in it
    await asyncio.sleep(0.1)
    assert waiting.status == "IN_QUEUE"


@pytest.mark.usefixtures("job")
async def test_a_poll_that_denies_a_job_waits_for_what_its_worker_may_be_sending(talk, worker_id, waiting, monkeypatch):
    taken = []
    serve = WorkerWire.serve

    async def note(self, scope, receive, send):
        taken.append(scope["path"])
        return await serve(self, scope, receive, send)

    monkeypatch.setattr(WorkerWire, "serve", note)
    answer = await talk(poll(worker_id))
    assert waiting.id.encode() in answer
    assert len(taken) == 1


@pytest.mark.parametrize("path", ["nobody/job-take/a", "quiet/job-take/nobody", "quiet/job-take/", "quiet/job-take"])
@pytest.mark.usefixtures("waiting")
async def test_polls_of_strangers_are_held_and_get_nothing(talk, path):
    answer = await talk(get(f"/v2/{path}"))
    assert answer.startswith(b"HTTP/1.1 204" if path != "quiet/job-take" else b"HTTP/1.1 404")


async def test_polls_are_for_get(talk, worker_id, waiting):
    """Whatever has another method goes the long way, also where it looks like one on the second read."""
    request = f"HEAD /v2/quiet/job-take/{worker_id} HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "
    assert (await talk(request.encode(), b"GET /\r\n\r\n")).endswith(b"\r\n\r\n")
    assert waiting.status == "IN_PROGRESS"


@pytest.mark.parametrize("route", ["job-take", "job-done", "job-stream"])
async def test_the_answer_to_head_has_no_body(talk, worker_id, job, waiting, route):
    assert waiting.status == "IN_QUEUE"
    request = f"HEAD /v2/quiet/{route}/{worker_id}/{job.id} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    assert (await talk(request.encode())).endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "target", ["http://quiet/job-done", "http://x:99999999/v2/quiet/job-done", "http://[::1/job-a"]
)
@pytest.mark.parametrize("size", [10_000, 80])
async def test_a_target_with_a_host_in_it_is_no_path_of_a_workers(talk, worker_id, job, *, target, size, caplog):
    answer = await talk(*in_pieces(post(f"{target}/{worker_id}/{job.id}", {"output": 1}), size))
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))
    assert job.status == "IN_PROGRESS"
    assert [record for record in caplog.records if record.exc_info] == []


async def test_a_request_that_is_held_is_not_cut_off_by_the_answer_to_one_before(
    start_emulator, make_endpoint, monkeypatch
):
    monkeypatch.setattr(loop_server, "_KEEP_ALIVE_SECONDS", 0.2)
    emulator = await start_emulator(make_endpoint("other", "silent", workers=(1, 1)))
    (worker,) = emulator.platform.workers("other")
    host, port = emulator.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    held = post("/v2/other/runsync?wait=1000", {"input": 1})
    writer.write(post(f"/v2/other/job-done/{worker.id}/none", {"output": 1}) + held)
    assert await asyncio.wait_for(reader.readexactly(len(OK)), 5) == OK
    assert (await asyncio.wait_for(reader.read(1000), 5)).startswith(b"HTTP/1.1 200 OK")
    writer.close()
    await writer.wait_closed()


async def test_a_ping_that_is_too_large_ends_nobodys_job(http, emulator, worker_id, job):
    answer = await http("POST", f"{emulator.url}/v2/quiet/ping/{worker_id}/{job.id}", data=b"a" * 11_000_000)
    assert answer.status == emulator._defaults.oversize_status
    assert job.status == "IN_PROGRESS"


@pytest.mark.parametrize("host", ["evil.example", "quiet.localhost"])
async def test_a_request_to_another_name_does_nothing(talk, emulator, worker_id, job, host):
    """The second is the name of an endpoint's own host, behind which there is no platform."""
    answer = await talk(part(worker_id, job, 1, host=host))
    assert answer.startswith(b"HTTP/1.1 403" if host == "evil.example" else b"HTTP/1.1 400")
    assert emulator.dispatcher.apply(emulator.platform.read_stream, "quiet", job.id) == []


@pytest.mark.parametrize("path", ["/v2/quiet/job-done", "/v2/quiet/job-what/a/b", "/v3/job-done/a/b", "/job-done/a"])
async def test_paths_that_look_like_a_workers_are_none(talk, path):
    assert (await talk(post(path, {}))).startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize("name", ["job-%61", "ä", "a#b"])
async def test_odd_ids_are_those_of_no_job(talk, worker_id, job, name):
    request = f"POST /v2/quiet/job-done/{worker_id}/{name} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\n{{}}"
    answer = await talk(request.encode())
    assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))
    assert job.status == "IN_PROGRESS"


async def test_rules_of_faults_concern_them(talk, emulator, worker_id, job):
    emulator.faults.set(parse_faults("drop=1.0"))
    try:
        assert await talk(part(worker_id, job, 1)) == b""
    finally:
        emulator.faults.set([])
    assert await talk(part(worker_id, job, 2)) == OK
    assert emulator.dispatcher.apply(emulator.platform.read_stream, "quiet", job.id) == [2]


async def test_a_fault_of_our_own_is_told_and_logged(talk, emulator, worker_id, job, *, monkeypatch, caplog):
    def fail(*_args, **_options):
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr(emulator.platform, "partial", fail)
    with caplog.at_level(logging.ERROR):
        answer = await talk(part(worker_id, job, 1))
    assert answer.startswith(b"HTTP/1.1 500")
    assert orjson.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "internal_error"
    (record,) = [record for record in caplog.records if record.exc_info]
    assert str(record.exc_info[1]) == "a fault of our own"
