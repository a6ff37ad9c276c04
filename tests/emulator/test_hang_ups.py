"""Workers that hang up at any moment around their polls: every job is done in the end, and done once."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import time
from http.client import HTTPConnection

import pytest
import uvloop

from flashkit.emulator.jobs import JobRequest
from flashkit.emulator.server import Emulator
from flashkit.protocol import PlatformDefaults

JOBS = 400
POLLERS = 4
BEHIND = b"GET /v2/jumpy/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


class Poller(threading.Thread):
    """Polls, and hangs up before the answer, under it, or after it has the job, which it does then."""

    def __init__(self, port: int, worker_id: str, seed: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._worker_id = worker_id
        self._random = random.Random(seed)
        self.done: list[str] = []
        self.is_over = False

    def run(self) -> None:
        while not self.is_over:
            if self._random.random() < 0.5:
                self._hang_up()
            else:
                self._work()

    def _hang_up(self) -> None:
        request = (
            f"GET /v2/jumpy/job-take/{self._worker_id}?job_in_progress=1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        ).encode()
        with socket.create_connection(("127.0.0.1", self._port)) as connection:
            if self._random.random() < 0.2:
                connection.sendall(request[:30])
                request = request[30:]
            connection.sendall(request + (BEHIND if self._random.random() < 0.3 else b""))
            if self._random.random() < 0.5:
                time.sleep(self._random.random() * 0.003)

    def _work(self) -> None:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=10)
        connection.request("GET", f"/v2/jumpy/job-take/{self._worker_id}?job_in_progress=1")
        answer = connection.getresponse()
        body = answer.read()
        if self._random.random() < 0.5:
            connection.close()  # it has read all of it
        if answer.status == 200:
            job = json.loads(body)
            result = json.dumps({"output": job["input"]})
            connection.request("POST", f"/v2/jumpy/job-done/{self._worker_id}/{job['id']}", result)
            connection.getresponse().read()
            self.done.append(job["id"])
        connection.close()


async def poll_and_hang_up(emulator, wait_until, *, seed):
    (worker,) = emulator.platform.workers("jumpy")
    jobs = [emulator.submit("jumpy", JobRequest(input=number)) for number in range(JOBS)]
    port = int(emulator.url.rpartition(":")[2])
    pollers = [Poller(port, worker.id, seed * POLLERS + number) for number in range(POLLERS)]
    for poller in pollers:
        poller.start()
    try:
        await wait_until(lambda: all(job.status == "COMPLETED" for job in jobs))
    finally:
        for poller in pollers:
            poller.is_over = True
        await asyncio.to_thread(lambda: [poller.join(10) for poller in pollers])
    return jobs, sorted(job_id for poller in pollers for job_id in poller.done)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_no_job_is_lost_or_done_twice(tmp_path, worker_environ, make_endpoint, wait_until, *, caplog, run, seed):
    endpoint = make_endpoint("jumpy", "silent", workers=(1, 1), concurrency=50)
    options = {"state_dir": tmp_path, "environ": worker_environ, "defaults": PlatformDefaults(poll_hold=0.2)}

    async def main():
        async with Emulator([endpoint], shutdown_grace=0.5, **options) as emulator:
            return await poll_and_hang_up(emulator, wait_until, seed=seed)

    jobs, done = run(main())
    assert done == sorted(job.id for job in jobs)
    assert all(job.output == job.input for job in jobs)
    assert any(job.attempt > 1 for job in jobs)
    assert caplog.records == []
