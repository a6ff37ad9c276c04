"""The worker's side, played by the test itself: polls, results, progress, parts, stops, pings, drains."""

from __future__ import annotations

import asyncio
import os
import socket
import time

import aiohttp
import orjson
import pytest

from flashkit.emulator.events import WorkerEvent
from flashkit.emulator.faults import parse_faults
from flashkit.emulator.jobs import JobRequest
from flashkit.emulator.server import Emulator
from flashkit.protocol import PlatformDefaults

MEGABYTE = 1024 * 1024
FORM = {"Content-Type": "application/x-www-form-urlencoded", "charset": "utf-8"}
HOLD = 0.6


class Player:
    """One worker, as the runpod SDK would speak for it."""

    def __init__(self, http, emulator, endpoint, worker_id):
        self.http, self.root, self.id = http, f"{emulator.url}/v2/{endpoint}", worker_id

    async def take(self, *, busy=False, batch=0):
        route = "job-take-batch" if batch else "job-take"
        size = f"&batch_size={batch}" if batch else ""
        return await self.http("GET", f"{self.root}/{route}/{self.id}?gpu=local{size}&job_in_progress={int(busy)}")

    async def stop_poll(self):
        return await self.http("GET", f"{self.root}/job-stop/{self.id}?gpu=local")

    async def done(self, job_id, result, *, is_stream=False):
        url = f"{self.root}/job-done/{self.id}/{job_id}?gpu=local&isStream={str(is_stream).lower()}"
        body = {"data": result} if isinstance(result, bytes) else {"json": result}
        return await self.http("POST", url, headers=FORM, **body)

    async def part(self, job_id, chunk):
        url = f"{self.root}/job-stream/{self.id}/{job_id}?gpu=local&isStream=false"
        return await self.http("POST", url, data=orjson.dumps({"output": chunk}), headers=FORM)

    async def submit(self, job_input=1, *, route="run", **fields):
        answer = await self.http("POST", f"{self.root}/{route}", json={"input": job_input, **fields})
        assert answer.status == 200, answer.body
        return answer.body["id"]

    async def status(self, job_id):
        return (await self.http("GET", f"{self.root}/status/{job_id}")).body


@pytest.fixture(scope="module")
async def emulator(tmp_path_factory, worker_environ, events):
    async with Emulator(
        [],
        state_dir=tmp_path_factory.mktemp("state"),
        environ=worker_environ,
        on_event=events,
        shutdown_grace=0.5,
        defaults=PlatformDefaults(poll_hold=HOLD, stop_grace=0.3, drain_grace=1.0),
    ) as emulator:
        yield emulator


@pytest.fixture
async def player(emulator, http, make_endpoint, request):
    """A worker of an endpoint that only this test uses."""
    name = f"wire-{len(emulator.platform.specs)}-{abs(hash(request.node.name)) % 10**6}"
    await emulator.replace([make_endpoint(name, "silent", workers=(1, 1))])
    yield Player(http, emulator, name, emulator.platform.workers(name)[0].id)
    await emulator.replace([], removed=[name])


async def test_a_job_is_handed_out_with_everything_that_came_with_it(player):
    s3 = {"accessId": "a", "accessSecret": "b", "bucketName": "c", "endpointUrl": "http://127.0.0.1:9000"}
    job_id = await player.submit({"n": 1}, s3Config=s3, webhook="http://127.0.0.1:9/hook")
    taken = await player.take()
    assert taken.status == 200
    assert taken.headers["Content-Type"] == "application/json"
    assert taken.body == {"id": job_id, "input": {"n": 1}, "s3Config": s3, "webhook": "http://127.0.0.1:9/hook"}


async def test_a_batch_is_a_list_of_at_most_its_size(player):
    ids = [await player.submit(n) for n in range(5)]
    first, second = await player.take(batch=3), await player.take(batch=3, busy=True)
    assert [job["id"] for job in first.body] == ids[:3]
    assert [job["id"] for job in second.body] == ids[3:]


async def test_an_empty_take_is_held_and_then_answered_with_204(player):
    answer = await player.take()
    assert (answer.status, answer.body) == (204, None)
    assert HOLD * 0.9 < answer.seconds < HOLD + 1


async def test_a_held_take_is_answered_the_moment_a_job_comes(player):
    held = asyncio.create_task(player.take())
    await asyncio.sleep(0.2)
    job_id = await player.submit()
    answer = await held
    assert answer.body["id"] == job_id
    assert answer.seconds < 0.4


async def test_strangers_are_held_as_well_and_get_nothing(player, http, emulator):
    await player.submit()
    urls = [f"{player.root}/{route}/stranger?gpu=x&job_in_progress=0" for route in ("job-take", "job-stop")]
    urls.append(f"{emulator.url}/v2/no-such-endpoint/job-take/stranger?gpu=x&job_in_progress=0")
    for answer in await asyncio.gather(*(http("GET", url) for url in urls)):
        assert answer.status == 204
        assert answer.seconds > HOLD * 0.9


async def test_a_worker_that_hung_up_is_not_given_the_job(player):
    """The job goes to the next poll, as its first hand-out."""
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(player.take(), 0.1)
    await asyncio.sleep(0.05)
    job_id = await player.submit()
    await asyncio.sleep(0.05)
    assert (await player.status(job_id))["status"] == "IN_QUEUE"
    assert (await player.take()).body["id"] == job_id


def send_take(emulator, player, *, batch=1):
    """Ask for work on a connection of its own, and read nothing."""
    connection = socket.create_connection(("127.0.0.1", int(emulator.url.rpartition(":")[2])))
    name = player.root.rpartition("/")[2]
    path = f"/v2/{name}/job-take-batch/{player.id}?gpu=local&batch_size={batch}&job_in_progress=0"
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    return connection


async def test_jobs_in_an_answer_that_was_not_read_are_handed_out_again_in_their_order(player, emulator, wait_until):
    """The kernel resets a connection whose end is closed with something unread in it."""
    name = player.root.rpartition("/")[2]
    ids = [await player.submit(n) for n in range(3)]
    connection = await asyncio.to_thread(send_take, emulator, player, batch=2)
    jobs = [emulator.platform.job(0.0, name, job_id) for job_id in ids]
    await wait_until(lambda: [job.status for job in jobs] == ["IN_PROGRESS", "IN_PROGRESS", "IN_QUEUE"])
    await asyncio.to_thread(connection.recv, 1, socket.MSG_PEEK)  # it has come, and stays unread
    connection.close()
    await wait_until(lambda: {job.status for job in jobs} == {"IN_QUEUE"}, seconds=5)
    assert [job["id"] for job in (await player.take(batch=3)).body] == ids
    assert [job.attempt for job in jobs] == [2, 2, 1]
    assert emulator.platform.health(name)["jobs"]["retried"] == 0
    for job_id in ids:
        await player.done(job_id, {"output": 1})
    assert {job.status for job in jobs} == {"COMPLETED"}


async def test_a_job_in_an_answer_that_was_read_is_not_handed_out_twice(player, emulator):
    name = player.root.rpartition("/")[2]
    job_id = await player.submit()
    job = emulator.platform.job(0.0, name, job_id)
    connection = await asyncio.to_thread(send_take, emulator, player)
    answer = b""
    while not answer.endswith(b"}]"):
        answer += await asyncio.to_thread(connection.recv, 65536)
    connection.close()
    await player.part(job_id, 1)
    assert (await player.take(busy=True)).status == 204
    assert (job.status, job.attempt) == ("IN_PROGRESS", 1)


async def test_a_job_whose_worker_hung_up_before_the_answer_was_sent_waits_again(player, emulator, wait_until):
    """The answer is slow; the worker is gone, with a proper end of the connection, before it is written."""
    name = player.root.rpartition("/")[2]
    job_id = await player.submit()
    job = emulator.platform.job(0.0, name, job_id)
    emulator.faults.set(parse_faults(f"{name}:latency=300ms"))
    connection = await asyncio.to_thread(send_take, emulator, player)
    await wait_until(lambda: job.status == "IN_PROGRESS")
    emulator.faults.set([])
    connection.close()
    await wait_until(lambda: job.status == "IN_QUEUE", seconds=5)
    assert (await player.take()).body["id"] == job_id


async def test_a_poll_that_a_freeze_broke_gets_no_job_however_soon_the_thaw_follows(player, emulator, wait_until):
    """The endpoint keeps one worker, so a frozen one is thawed at once, for a job that is there already."""
    name = player.root.rpartition("/")[2]
    (worker,) = emulator.platform.workers(name)
    held = await asyncio.to_thread(send_take, emulator, player)
    await wait_until(lambda: worker.state == "IDLE")
    job = emulator.submit(name, JobRequest({}))  # wakes the poll, which looks a moment later
    emulator.freeze_worker(player.id)
    assert await asyncio.to_thread(held.recv, 65536) == b""
    held.close()
    assert job.status == "IN_QUEUE"
    assert (await player.take()).body["id"] == job.id
    assert job.attempt == 1


async def test_nothing_is_kept_of_connections_that_ended(player, emulator, wait_until):
    """Whoever makes up names of workers must not fill the memory."""
    known = emulator.dispatcher.connections
    before = set(known._of)
    for number in range(5):
        stranger = Player(player.http, emulator, "no-such-endpoint", f"stranger-{number}")
        connection = await asyncio.to_thread(send_take, emulator, stranger)
        await wait_until(lambda number=number: f"stranger-{number}" in known._of)
        connection.close()
    await wait_until(lambda: not [name for name in known._of if name.startswith("stranger-")])
    assert set(known._of) <= before
    assert set(known._owners.values()) == set(known._of)


async def test_a_job_whose_worker_speaks_of_it_stays_with_the_worker_whatever_its_connection_does(
    player, emulator, wait_until
):
    name = player.root.rpartition("/")[2]
    job_id = await player.submit()
    job = emulator.platform.job(0.0, name, job_id)
    connection = await asyncio.to_thread(send_take, emulator, player)
    await wait_until(lambda: job.status == "IN_PROGRESS")
    await asyncio.to_thread(connection.recv, 1, socket.MSG_PEEK)
    await player.part(job_id, 1)
    connection.close()
    assert (await player.take(busy=True)).status == 204
    assert (job.status, job.attempt) == ("IN_PROGRESS", 1)


async def test_a_result_is_read_as_json_whatever_its_content_type(player):
    job_id = await player.submit()
    await player.take()
    answer = await player.done(job_id, b'{"output": {"text": "\xc3\xa9"}}')
    assert (answer.status, answer.body) == (200, {})
    assert (await player.status(job_id))["output"] == {"text": "é"}


async def test_results_that_are_late_or_foreign_are_accepted_and_ignored(player, http, emulator):
    job_id = await player.submit()
    await player.take()
    stranger = Player(http, emulator, player.root.rpartition("/")[2], "stranger")
    assert (await stranger.done(job_id, {"output": "not mine"})).status == 200
    assert (await player.status(job_id))["status"] == "IN_PROGRESS"
    await player.done(job_id, {"output": "first"})
    assert (await player.done(job_id, {"output": "second"})).status == 200
    assert (await player.done(job_id, {"status": "IN_PROGRESS", "output": "late progress"})).status == 200
    assert (await player.part(job_id, "late part")).status == 200
    assert (await player.done("never-submitted", {"output": 1})).status == 200
    state = await player.status(job_id)
    assert (state["status"], state["output"]) == ("COMPLETED", "first")


async def test_progress_shows_as_output_until_the_result_comes(player):
    job_id = await player.submit()
    await player.take()
    await player.done(job_id, {"status": "IN_PROGRESS", "output": {"percent": 40}})
    state = await player.status(job_id)
    assert (state["status"], state["output"]) == ("IN_PROGRESS", {"percent": 40})
    await player.done(job_id, {"output": "all"})
    assert (await player.status(job_id))["output"] == "all"


async def test_parts_are_streamed_in_order_and_read_once(player, http):
    job_id = await player.submit()
    await player.take()
    for number in range(3):
        await player.part(job_id, {"n": number})
    url = f"{player.root}/stream/{job_id}"
    first = await http("GET", url)
    assert first.body == {"status": "IN_PROGRESS", "stream": [{"output": {"n": n}} for n in range(3)]}
    await player.part(job_id, "last")
    await player.done(job_id, {"output": []}, is_stream=True)
    assert (await http("GET", url)).body == {"status": "COMPLETED", "stream": [{"output": "last"}]}
    assert (await http("GET", url)).body == {"status": "COMPLETED", "stream": []}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"{'output': 1}", "not JSON"),
        (b'{"output": NaN}', "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"", "not JSON"),
    ],
)
async def test_a_result_that_is_not_json_fails_the_job_with_the_reason(player, body, named):
    job_id = await player.submit()
    await player.take()
    assert (await player.done(job_id, body)).status == 400
    state = await player.status(job_id)
    assert state["status"] == "FAILED"
    assert '"output_invalid"' in state["error"]
    assert named in state["error"]


async def test_a_result_over_the_limit_fails_the_job_with_the_sizes(player):
    """10 MB for /run, 20 MB for /runsync."""
    large = b'{"output": "' + b"x" * (11 * MEGABYTE) + b'"}'
    job_id = await player.submit()
    await player.take()
    refused = await player.done(job_id, large)
    assert refused.status == 413
    assert refused.error["details"]["limit_bytes"] == 10 * MEGABYTE
    state = await player.status(job_id)
    assert state["status"] == "FAILED"
    assert '"output_too_large"' in state["error"]

    waiting = asyncio.create_task(player.submit(route="runsync?wait=5000"))
    taken = await player.take()
    assert (await player.done(taken.body["id"], large)).status == 200
    await waiting
    waiting = asyncio.create_task(player.submit(route="runsync?wait=5000"))
    taken = await player.take()
    assert (await player.done(taken.body["id"], large + b" " * (10 * MEGABYTE))).status == 413
    await waiting


async def test_a_part_over_the_limit_fails_the_job(player):
    job_id = await player.submit()
    await player.take()
    assert (await player.part(job_id, "x" * (MEGABYTE + 1))).status == 413
    state = await player.status(job_id)
    assert state["status"] == "FAILED"
    assert '"output_too_large"' in state["error"]


async def test_cancelling_a_running_job_answers_the_stop_poll_at_once(player, http):
    job_id = await player.submit()
    await player.take()
    held = asyncio.create_task(player.stop_poll())
    await asyncio.sleep(0.1)
    cancelled = await http("POST", f"{player.root}/cancel/{job_id}")
    assert cancelled.body == {"id": job_id, "status": "CANCELLED"}
    stop = await held
    assert stop.body == {"jobsToStop": [job_id]}
    assert stop.seconds < 0.4
    assert (await player.stop_poll()).status == 204  # told once
    assert (await player.done(job_id, {"output": "too late"})).status == 200
    assert (await player.status(job_id))["status"] == "CANCELLED"


async def test_a_job_over_its_execution_timeout_is_stopped_and_its_worker_killed(player, emulator, events, wait_until):
    job_id = await player.submit()
    endpoint = player.root.rpartition("/")[2]
    emulator.platform.job(0.0, endpoint, job_id).execution_timeout_ms = 300
    await player.take()
    stop = await player.stop_poll()
    assert stop.body == {"jobsToStop": [job_id]}
    state = await player.status(job_id)
    assert state["status"] == "TIMED_OUT"
    assert 250 <= state["executionTime"] < 1000
    await wait_until(lambda: "killed" in {event.what for event in events.of_workers(endpoint)}, seconds=3)


async def test_a_worker_that_asks_for_work_without_its_job_has_dropped_it(player, wait_until):
    job_id = await player.submit()
    await player.take()
    asking = asyncio.create_task(player.take())
    await asyncio.sleep(1.2)
    state = await player.status(job_id)
    assert state["status"] == "FAILED"
    assert '"job_dropped"' in state["error"]
    await asking


async def test_a_result_that_is_still_being_sent_is_not_a_dropped_job(player):
    """A take says that no job is in progress while the result's body is on its way."""
    job_id = await player.submit()
    await player.take()

    async def slow_body():
        yield b'{"output": '
        await asyncio.sleep(1.5)
        yield b'"slow"}'

    url = f"{player.root}/job-done/{player.id}/{job_id}?gpu=x&isStream=false"
    sending = asyncio.create_task(player.http("POST", url, data=slow_body(), headers=FORM))
    await asyncio.sleep(0.1)
    await player.take()
    await sending
    state = await player.status(job_id)
    assert (state["status"], state["output"]) == ("COMPLETED", "slow")


async def test_a_worker_that_is_drained_gets_the_signal_and_then_its_polls_back(
    player, emulator, make_endpoint, events
):
    endpoint = player.root.rpartition("/")[2]
    polls = [asyncio.create_task(player.take()), asyncio.create_task(player.stop_poll())]
    await asyncio.sleep(0.1)
    await emulator.replace([make_endpoint(endpoint, "silent", workers=(1, 1))])
    for answer in await asyncio.gather(*polls):
        assert answer.status == 204
        assert answer.seconds < 0.5
    await player.submit()
    assert (await player.take()).status == 204  # nothing for a worker that leaves, and no spinning
    moments = [event.what for event in events.of_workers(endpoint) if event.worker_id == player.id]
    assert moments[:3] == ["starting", "ready", "draining"]


async def test_stop_pod_in_a_result_recycles_the_worker(player, emulator, wait_until):
    endpoint = player.root.rpartition("/")[2]
    job_id = await player.submit()
    await player.take()
    await player.done(job_id, {"output": 1, "stopPod": True})
    assert (await player.status(job_id))["status"] == "COMPLETED"
    await wait_until(lambda: player.id not in {worker.id for worker in emulator.platform.workers(endpoint)}, seconds=3)
    assert [worker.id for worker in emulator.platform.workers(endpoint)]  # the floor of one is kept


async def test_pings_are_accepted_and_an_unhealthy_one_is_told(player, http, events):
    url = f"{player.root}/ping/{player.id}"
    assert (await http("GET", f"{url}?job_id=a,b&runpod_version=1.12.0")).status == 200
    assert (await http("GET", f"{url}?status=unhealthy&check=has%20weights&reason=OSError:%20none")).status == 200
    told = [event for event in events.all if isinstance(event, WorkerEvent) and event.worker_id == player.id]
    assert ("unhealthy", "has weights: OSError: none") in [(event.what, event.detail) for event in told]


async def test_events_tell_a_jobs_times_and_sizes(player, events, emulator):
    job_id = await player.submit({"text": "x" * 100})
    await player.take()
    await player.done(job_id, {"output": "y" * 200})
    queued, running, done = events.of_job(job_id)
    assert [event.status for event in (queued, running, done)] == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    assert queued.worker_id is None
    assert running.worker_id == done.worker_id == player.id
    assert 100 < done.input_bytes < 150
    assert 200 < done.output_bytes < 250
    assert done.delay_ms is not None
    assert done.execution_ms is not None
    assert done.attempt == 1


async def test_a_worker_killed_while_its_poll_is_held_loses_no_job(player, emulator, wait_until):
    endpoint = player.root.rpartition("/")[2]
    async with aiohttp.ClientSession() as session:
        url = f"{player.root}/job-take/{player.id}?gpu=x&job_in_progress=0"
        held = asyncio.create_task(session.get(url))
        await asyncio.sleep(0.1)
        job_id = await player.submit()
        await held  # the worker has the job now
        held.result().close()
    pid = emulator._supervisor._workers[player.id].process.pid
    started = time.monotonic()
    os.kill(pid, 9)
    job = emulator.platform.job(0.0, endpoint, job_id)
    await wait_until(lambda: job.status == "IN_QUEUE", seconds=2)
    assert time.monotonic() - started < 2
    successor = await wait_until(
        lambda: [w for w in emulator.platform.workers(endpoint) if w.id != player.id], seconds=5
    )
    again = Player(player.http, emulator, endpoint, successor[0].id)
    assert (await again.take()).body["id"] == job_id
    assert job.attempt == 2
