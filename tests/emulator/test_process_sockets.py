"""Which ports a process group talks from."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys

import pytest

from flashkit.emulator.process_sockets import local_ports

CONNECT = """
import socket, sys, time
kept = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print(kept.getsockname()[1], flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="read off /proc")
async def test_ports_of_stopped_processes_of_a_group_are_found_and_no_others():
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = str(server.getsockname()[1])
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CONNECT, target, stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
        try:
            port = int(await process.stdout.readline())
            with socket.create_connection(server.getsockname()):
                os.killpg(process.pid, signal.SIGSTOP)
                assert local_ports(process.pid) == {port}
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    assert local_ports(process.pid) == set()


def test_other_systems_have_no_such_place_to_look(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    assert local_ports(os.getpgid(0)) == set()
