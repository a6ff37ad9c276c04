"""vLLM that is frozen, killed, broken off while it starts, or cannot start at all."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
import threading

import psutil
import pytest

from flashkit.errors import ConfigurationError, EngineDied, EngineError
from flashkit.worker.engines.engine import EngineRequest
from flashkit.worker.engines.vllm import VllmEngine
from flashkit.worker.engines.vllm_processes import ending_with
from flashkit.worker.watchdog import watch_engine

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",  # vLLM's own
    "ignore::FutureWarning",
    "ignore::ResourceWarning",  # a start that fails leaves a ZeroMQ context behind, which says so when it goes
    "ignore::pytest.PytestUnraisableExceptionWarning",
)

SCHEDULER, MODEL = "VLLM::EngineCore", "VLLM::Worker"
"""Titles of vLLM's processes."""
COMPLETIONS = "/v1/completions"
ENDLESS = {"prompt": "Hello", "max_tokens": 500, "ignore_eos": True}


@pytest.fixture(autouse=True)
def nothing_left():
    """Let what is left behind go within the test."""
    yield
    gc.collect()


async def answer(engine: VllmEngine, **body) -> dict:
    response = await engine.open(EngineRequest(COMPLETIONS, {"prompt": "Hello", "max_tokens": 4, **body}))
    text = await response.read()
    await response.close()
    return json.loads(text)


def model_processes() -> list[psutil.Process]:
    """Return the processes below this one that vLLM runs the model in."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if is_alive(process) and process.cmdline()[:1] in ([SCHEDULER], [MODEL]):
                found.append(process)
    return found


@pytest.fixture
async def engine(load_tiny) -> VllmEngine:
    engine = await load_tiny()
    assert [process.cmdline()[0] for process in model_processes()] == [SCHEDULER]  # it runs the model, too
    yield engine
    await engine.close()
    assert model_processes() == []


async def test_after_a_freeze_it_goes_on_with_what_it_had(engine: VllmEngine):
    response = await engine.open(EngineRequest(COMPLETIONS, {**ENDLESS, "stream": True}))
    await anext(response.body)
    for process in model_processes():
        process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(1)
    for process in model_processes():
        process.send_signal(signal.SIGCONT)
    text = await response.read()
    await response.close()
    assert text.endswith(b"data: [DONE]\n\n")
    assert b'"finish_reason":"length"' in text
    await engine.check()
    assert (await answer(engine))["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize(
    ("options", "victim"),
    [
        ({}, SCHEDULER),
        ({"distributed_executor_backend": "mp"}, SCHEDULER),
        ({"distributed_executor_backend": "mp"}, MODEL),
    ],
)
async def test_when_a_process_of_it_is_killed_every_request_ends_with_a_retryable_error(load_tiny, options, victim):
    engine = await load_tiny(**options)
    watching = asyncio.create_task(watch_engine(engine, tick_seconds=0.1, check_seconds=0.1))
    stream = await engine.open(EngineRequest(COMPLETIONS, {**ENDLESS, "stream": True}))
    await anext(stream.body)
    whole = [asyncio.create_task(answer(engine, **ENDLESS)) for _ in range(3)]
    await asyncio.sleep(0.1)
    [process] = [process for process in model_processes() if process.cmdline()[:1] == [victim]]
    process.kill()
    async with asyncio.timeout(30):
        outcomes = await asyncio.gather(*whole, stream.read(), return_exceptions=True)
        death = await watching
    assert [type(outcome) for outcome in outcomes] == [EngineDied] * 4
    assert outcomes[0].report.details == {"retryable": True}
    assert death.report.code == "engine_died"
    await stream.close()
    for attempt in (engine.check(), answer(engine)):
        with pytest.raises(EngineDied, match="vLLM is dead"):
            await attempt
    assert not engine.is_busy
    await engine.close()
    assert model_processes() == []


LOADING = """
import asyncio, json, sys
from pathlib import Path
from flashkit import VLLM, Weights
from flashkit.settings import Settings
from flashkit.worker.engines.engine import load_engine
from flashkit.worker.phases import Phases

async def main():
    options = {"max_model_len": 512, "kv_cache_memory_bytes": 1 << 20, **json.loads(sys.argv[3])}
    spec = VLLM(Weights("tests/tiny-llama"), **options)
    engine = await load_engine(spec, Settings(weights_dir=Path(sys.argv[1])), Phases())
    Path(sys.argv[2]).touch()
    await asyncio.sleep(100)

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux tells a process that another one is gone")
@pytest.mark.parametrize("options", [{}, {"distributed_executor_backend": "mp"}], ids=["one", "two"])
async def test_no_process_outlives_a_worker_that_is_killed(model_settings, tmp_path, options):
    ready, said = tmp_path / "ready", tmp_path / "said"
    with said.open("wb") as output:  # no pipe: whoever outlives the worker would hold it
        worker = psutil.Popen(
            [sys.executable, "-c", LOADING, str(model_settings.weights_dir), str(ready), json.dumps(options)],
            stdout=output,
            stderr=output,
        )
    left = []
    try:
        async with asyncio.timeout(100):
            while not ready.exists():
                assert worker.poll() is None, said.read_text()
                await asyncio.sleep(0.05)
        left = worker.children(recursive=True)
        assert [SCHEDULER] in [process.cmdline()[:1] for process in left]
        worker.kill()
        worker.wait()
        async with asyncio.timeout(10):
            while any(map(is_alive, left)):
                await asyncio.sleep(0.05)
    finally:
        for process in (worker, *left):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        worker.wait()


@pytest.mark.parametrize(
    ("opening", "is_killed"),
    [(ProcessLookupError("it is gone"), True), (PermissionError("a sandbox"), False), (AttributeError("macOS"), False)],
)
def test_who_cannot_watch_the_worker_runs_on_and_who_comes_late_ends(monkeypatch, opening, is_killed):
    killed = threading.Event()

    def pidfd_open(pid: int) -> int:
        raise opening

    monkeypatch.setattr(os, "pidfd_open", pidfd_open, raising=False)
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.set())
    assert ending_with(os.getpid(), lambda answer: answer)(42) == 42
    for thread in threading.enumerate():
        if thread.name == "flashkit-worker-watch":
            thread.join(5)
    assert killed.is_set() == is_killed


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


BESIDE_ANOTHER = """
import multiprocessing, multiprocessing.forkserver
from flashkit.worker.engines.vllm_processes import CpuNursery

multiprocessing.forkserver.ensure_running()
nursery = CpuNursery()
nursery.start()
assert not nursery.is_used
with nursery.forking():
    assert multiprocessing.get_context("spawn").get_start_method() == "spawn"
"""


async def test_an_app_that_uses_the_fork_server_keeps_it():
    program = await asyncio.create_subprocess_exec(sys.executable, "-c", BESIDE_ANOTHER)
    assert await program.wait() == 0


async def test_a_start_that_is_broken_off_leaves_no_process(load_tiny):
    starting = asyncio.create_task(load_tiny())
    async with asyncio.timeout(60):
        while not model_processes():
            await asyncio.sleep(0.05)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert model_processes() == []


async def test_a_model_that_does_not_fit_into_memory_does_not_start(load_tiny):
    with pytest.raises(EngineError, match="vLLM did not start") as caught:
        await load_tiny(max_model_len=2048, kv_cache_memory_bytes=200_000)
    assert "log lines above" in caught.value.report.hint  # with the numbers, from the process that knows them
    assert model_processes() == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_model_len": 100_000}, "vLLM cannot run this model so: .*100000"),
        ({"quantization": "awq"}, "vLLM cannot run this model so"),
        ({"max_model_len": "many"}, "refuses its options"),
        ({"chat_template": "/nowhere/template.jinja"}, "/nowhere/template.jinja"),
        ({"lora_modules": {"x": "/nowhere"}}, "the LoRA adapter 'x' cannot be read: /nowhere/adapter_config.json"),
    ],
)
async def test_options_that_this_model_cannot_have_are_refused_in_vllms_words(load_tiny, options, said):
    with pytest.raises(ConfigurationError, match=said):
        await load_tiny(**options)
    assert model_processes() == []
