"""Worker processes: what they get, what they print, how they end, and that none is left behind."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from flashkit.emulator.events import LogLine, WorkerEvent
from flashkit.emulator.supervisor import LINE_LIMIT_BYTES, LineSplitter, parse_line
from flashkit.errors import ConfigurationError, ErrorReport
from flashkit.protocol import PlatformDefaults
from tests.processes import arguments_of

HANDLERS = Path(__file__).parents[1] / "handlers"


@pytest.fixture
def script(make_endpoint):
    """Build an endpoint whose one worker runs this text as a program."""

    def make(name, text, **changes):
        local = make_endpoint(name, "silent", workers=(1, 1))
        return dataclasses.replace(local, command=(sys.executable, "-c", textwrap.dedent(text)), **changes)

    return make


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_a_worker_gets_its_urls_and_nothing_of_the_developers_account(
    start_emulator, script, events, wait_until, tmp_path
):
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": "/home/developer",
        "RUNPOD_API_KEY": "secret",
        "RUNPOD_AI_API_KEY": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "PYTHONPATH": "/somewhere",
        "FLASHKIT_STATE": "redis://127.0.0.1:6379/0",
        "FLASHKIT_ENDPOINTS": '{"environment": "abc123"}',
    }
    program = "import json, os, time; print(json.dumps(dict(os.environ)), flush=True); time.sleep(60)"
    local = script("environment", program, env={"EXTRA": "1"})
    spec = dataclasses.replace(local.spec, env={"MODEL": "tiny"})
    local = dataclasses.replace(local, spec=spec)
    emulator = await start_emulator(local, environ=environ, on_event=events, shutdown_grace=0.5)
    line = (await wait_until(lambda: events.lines("environment")))[0]
    given = json.loads(line.text)
    assert "secret" not in line.text
    assert (given["MODEL"], given["EXTRA"]) == ("tiny", "1")
    assert given["FLASHKIT_STATE"] == "redis://127.0.0.1:6379/0"
    assert given["RUNPOD_ENDPOINT_ID"] == "environment"
    assert given["RUNPOD_WEBHOOK_GET_JOB"].startswith(f"{emulator.url}/v2/environment/job-take/$ID?")
    assert given["RUNPOD_POD_ID"] == line.worker_id
    assert not {"PYTHONPATH", "FLASHKIT_ENDPOINTS", "RUNPOD_API_KEY", "RUNPOD_AI_API_KEY"} & set(given)
    home = Path(given["HOME"])
    assert home.is_relative_to(tmp_path)
    assert list(home.iterdir()) == []


async def test_a_workers_temporary_files_are_its_own_and_go_with_it(start_emulator, script, events, wait_until):
    program = """
        import tempfile, time
        print(tempfile.NamedTemporaryFile(delete=False).name, flush=True)
        time.sleep(60)
    """
    emulator = await start_emulator(script("first", program), script("second", program), on_event=events)
    first, second = [(await wait_until(lambda of=name: events.lines(of)))[0] for name in ("first", "second")]
    assert Path(first.text).exists()
    assert Path(first.text).parent != Path(second.text).parent
    emulator.kill_worker(first.worker_id)
    await wait_until(lambda: not Path(first.text).parent.exists())
    assert Path(second.text).exists()


async def test_with_a_key_set_workers_can_call_other_endpoints(start_emulator, script, events, wait_until):
    program = "import os, time; print(os.environ['RUNPOD_API_KEY'], flush=True); time.sleep(60)"
    await start_emulator(script("keyed", program), api_key="local-key", on_event=events, shutdown_grace=0.5)
    assert (await wait_until(lambda: events.lines("keyed")))[0].text == "local-key"


async def test_a_worker_that_cannot_be_imported_fails_waiting_jobs_with_its_last_lines(
    start_emulator, make_endpoint, http
):
    defaults = PlatformDefaults(failed_starts=2, respawn_delay=0.05)
    emulator = await start_emulator(make_endpoint("broken", "broken"), defaults=defaults)
    answer = await http("POST", f"{emulator.url}/v2/broken/runsync", json={"input": 1})
    report = ErrorReport.from_job_error(answer.body["error"])
    assert report.code == "worker_start_failed"
    assert report.details["failed_starts"] == 2
    assert report.details["log_tail"][-1] == "ImportError: the weights are not where they should be"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"command": ("no-such-program",)}, "no-such-program"),
        ({"cwd": Path("/no/such/folder")}, "/no/such/folder"),
        ({"env": {"TOKEN": "a\0b"}}, "null byte"),
        ({"env": {"TOKEN": 3}}, "the platform's log has the traceback"),
    ],
)
async def test_a_worker_that_cannot_be_started_fails_waiting_jobs_with_the_reason(
    start_emulator, make_endpoint, http, change, named
):
    local = dataclasses.replace(make_endpoint("nothing", "silent"), **change)
    emulator = await start_emulator(local, defaults=PlatformDefaults(failed_starts=1))
    answer = await http("POST", f"{emulator.url}/v2/nothing/runsync", json={"input": 1})
    report = ErrorReport.from_job_error(answer.body["error"])
    assert report.code == "worker_start_failed"
    assert named in report.details["log_tail"][-1]


async def test_a_flood_of_output_neither_blocks_the_emulator_nor_fills_it(start_emulator, make_endpoint, http):
    """100 MB of lines, printed by a handler."""
    count, lags = 0, []

    def count_lines(event):
        nonlocal count
        count += isinstance(event, LogLine)

    async def watch():
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            lags.append(time.monotonic() - before - 0.01)

    emulator = await start_emulator(make_endpoint("flooding", "actions"), on_event=count_lines)
    memory = psutil.Process().memory_info().rss
    watching = asyncio.create_task(watch())
    body = {"input": {"do": "flood", "bytes": 100_000_000}}
    answer = await http("POST", f"{emulator.url}/v2/flooding/runsync", json=body)
    watching.cancel()
    assert answer.body["output"] == "flooded"
    assert count > 900_000
    assert max(lags) < 0.5
    assert psutil.Process().memory_info().rss - memory < 20_000_000


async def test_workers_are_gone_when_the_emulator_has_stopped(
    start_emulator, script, make_endpoint, events, wait_until
):
    """The obedient one, the one that ignores SIGTERM, and what it has started."""
    with_child = """
        import signal, subprocess, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
        time.sleep(600)
    """
    endpoints = [make_endpoint("obedient", "silent", workers=(2, 2)), script("stubborn", with_child)]
    emulator = await start_emulator(*endpoints, on_event=events, shutdown_grace=0.5)
    child = int((await wait_until(lambda: events.lines("stubborn")))[0].text)
    pids = [child, *(worker.process.pid for worker in emulator._supervisor._workers.values())]
    assert len(pids) == 4
    started = time.monotonic()
    await emulator.__aexit__(None, None, None)
    assert time.monotonic() - started < 3
    assert all(is_gone(pid) for pid in pids)


HOST = """
    import asyncio, sys, uvloop
    from pathlib import Path
    from flashkit.emulator.server import Emulator, LocalEndpoint
    from flashkit.emulator.events import LogLine
    from flashkit.spec import EndpointSpec, Kind, WorkerBounds

    def show(event):
        if isinstance(event, LogLine):
            print(event.text, flush=True)

    program = '''
    import os, subprocess, time
    print(os.getpid(), subprocess.Popen(["sleep", "600"]).pid, flush=True)
    time.sleep(600)
    '''.replace("\\n    ", "\\n")

    async def main():
        spec = EndpointSpec(name="a", kind=Kind.CPU, cpu="cpu3c-1-2", workers=WorkerBounds(2, 2))
        local = LocalEndpoint(spec, (sys.executable, "-c", program), Path("."))
        async with Emulator([local], state_dir=Path(sys.argv[1]), on_event=show, shutdown_grace=1.0):
            await asyncio.sleep(600)

    {"asyncio": asyncio, "uvloop": uvloop}[sys.argv[2]].run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
async def test_neither_processes_nor_files_outlive_an_emulator_that_is_killed_or_interrupted(number, loop, tmp_path):
    """kill -9 of the process that runs it, and Ctrl-C, which a terminal sends to the whole group."""
    host = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(HOST), str(tmp_path), loop,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    pids = [int(pid) for _ in range(2) for pid in (await asyncio.wait_for(host.stdout.readline(), 20)).split()]
    [reaper] = [child for child in psutil.Process(host.pid).children() if "reaper.py" in " ".join(arguments_of(child))]
    temporary = Path(arguments_of(reaper)[-1])
    assert len(pids) == 4
    assert sorted(folder.name for folder in temporary.iterdir()) == ["1", "2"]
    os.killpg(host.pid, number)
    await asyncio.wait_for(host.wait(), 5)
    end = time.monotonic() + 2
    while not all(is_gone(pid) for pid in (*pids, reaper.pid)):
        assert time.monotonic() < end, "workers outlived the emulator"
        await asyncio.sleep(0.05)
    assert not temporary.exists()
    await host.communicate()


async def test_a_port_in_use_is_an_error_that_names_the_option(start_emulator):
    first = await start_emulator()
    port = int(first.url.rpartition(":")[2])
    with pytest.raises(ConfigurationError, match=f"port {port} .* in use") as caught:
        await start_emulator(port=port)
    assert "--port" in caught.value.report.hint


async def test_an_address_of_another_machine_is_an_error_that_names_the_option(start_emulator):
    with pytest.raises(ConfigurationError) as caught:
        await start_emulator(host="192.0.2.1")
    assert "--host" in caught.value.report.hint


async def test_replacing_an_endpoint_keeps_its_jobs_and_renews_its_workers(
    start_emulator, make_endpoint, http, events, wait_until
):
    local = make_endpoint("reloaded", "silent", workers=(1, 1))
    emulator = await start_emulator(local, make_endpoint("other", "silent", workers=(1, 1)), on_event=events)
    job = (await http("POST", f"{emulator.url}/v2/reloaded/run", json={"input": 1})).body
    old, other = (emulator.platform.workers(name)[0].id for name in ("reloaded", "other"))
    await emulator.replace([local])
    await wait_until(lambda: [worker.id for worker in emulator.platform.workers("reloaded")] not in ([old], []))
    await wait_until(lambda: old not in {worker.id for worker in emulator.platform.workers("reloaded")})
    assert (await http("GET", f"{emulator.url}/v2/reloaded/status/{job['id']}")).body["status"] == "IN_QUEUE"
    assert [worker.id for worker in emulator.platform.workers("other")] == [other]
    await emulator.replace([], removed=["reloaded"])
    assert (await http("GET", f"{emulator.url}/v2/reloaded/health")).status == 404


async def test_lines_are_split_across_chunks_and_cut_at_their_limit():
    splitter = LineSplitter(limit_bytes=5)
    assert list(splitter.feed(b"ab")) == []
    assert list(splitter.feed(b"c\n\nlonger than ")) == [b"abc", b""]
    assert list(splitter.feed(b"five\nx")) == [b"longe"]
    assert list(splitter.rest()) == [b"x"]
    assert LINE_LIMIT_BYTES == 65536


@pytest.mark.parametrize(
    ("line", "job_id", "level", "text"),
    [
        (b'{"requestId": "j1", "message": "Started.", "level": "INFO"}', "j1", "INFO", "Started."),
        (b'{"requestId": null, "message": "two\\nlines", "level": "ERROR"}', None, "ERROR", "two\nlines"),
        (b'{"requestId": "cut off', None, None, '{"requestId": "cut off'),
        (b"plain \xff text", None, None, "plain � text"),
        (b" 10%|#\r 50%|##\r100%|###\r", None, None, "100%|###"),
    ],
)
async def test_lines_of_the_sdk_and_of_others_are_told_apart(line, job_id, level, text):
    assert parse_line("e", "w", line) == LogLine("e", "w", job_id, level, text)


async def test_the_events_of_a_worker_tell_its_life(start_emulator, make_endpoint, events, wait_until):
    emulator = await start_emulator(make_endpoint("lively", "silent", workers=(1, 1)), on_event=events)
    await wait_until(lambda: events.lines("lively"))
    await emulator.replace([], removed=["lively"])
    await wait_until(lambda: "exited" in [event.what for event in events.of_workers("lively")])
    assert events.of_workers("lively")[-1] == WorkerEvent(
        "lively", events.of_workers("lively")[0].worker_id, "exited", "SIGTERM"
    )
