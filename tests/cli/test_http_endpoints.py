"""Load-balanced endpoints in the terminal: the banner, a line for each request, `flashkit run` with a route."""

import io
import textwrap
from pathlib import Path

import pytest
from rich.console import Console

from flashkit.cli.apps import describe_apps
from flashkit.cli.console import Screen, describe_spec
from flashkit.cli.http_lines import curl_line
from flashkit.cli.json_lines import JsonLines
from flashkit.cli.local_platform import read_event
from flashkit.cli.mcp import make_tools
from flashkit.emulator.events import RequestEvent
from flashkit.emulator.recorder import Recorded, describe
from flashkit.errors import ConfigurationError

APP = textwrap.dedent("""
    from collections.abc import AsyncIterator
    from flashkit import cpu_endpoint
    from starlette.responses import PlainTextResponse

    api = cpu_endpoint(name="api", workers=(0, 1))


    @api.get("/items/{item_id}")
    async def read(item_id: int, q: str = "") -> dict[str, object]:
        return {"item": item_id, "q": q}


    @api.post("/add")
    async def add(a: int, b: int = 1) -> int:
        return a + b


    @api.get("/text")
    async def text() -> PlainTextResponse:
        return PlainTextResponse("only text")


    @api.post("/words")
    async def words(line: str) -> AsyncIterator[str]:
        for word in line.split():
            yield word + " "


    @api.get("/fail")
    async def fail() -> None:
        raise LookupError("nothing found")


    @api.websocket("/live")
    async def live(websocket: "WebSocket") -> None: ...


    from starlette.websockets import WebSocket
""")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("http")
    (folder / "app.py").write_text(APP)
    return folder


@pytest.fixture(scope="module")
def dev(folder, start_shared_dev):
    return start_shared_dev(folder)


def request_event(**parts):
    blank = {"endpoint": "api", "request_id": "r1", "method": "GET", "path": "/x", "status": 200, "worker_id": "w"}
    times = {"wait_ms": 0, "run_ms": 12, "first_byte_ms": 5, "request_bytes": 0, "response_bytes": 812}
    return RequestEvent(**{**blank, **times, "problem": None, **parts})


def printed(event):
    out = io.StringIO()
    Screen(log_level="warning", console=Console(file=out, highlight=False, markup=False)).show_event(event)
    return out.getvalue().partition(" ")[2].rstrip()


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ({}, "✓ api         GET      /x  200  first byte 5 ms · run 12 ms · 0 B → 812 B"),
        (
            {"wait_ms": 1300, "status": 404},
            "✗ api         GET      /x  404  waited 1.3 s · first byte 5 ms · run 12 ms",
        ),
        ({"status": None, "run_ms": None, "first_byte_ms": None}, "✗ api         GET      /x  hung up  0 B → 812 B"),
        ({"status": 502, "problem": "the worker died: SIGKILL"}, "0 B → 812 B  the worker died: SIGKILL"),
    ],
)
def test_a_request_is_a_line(parts, line):
    assert line in printed(request_event(**parts))


def test_a_request_is_read_from_json_as_it_was_written():
    event = request_event(problem="late")
    assert read_event(describe(Recorded(1, 0.0, event))) == event


def test_a_route_is_called_by_a_line_that_works_in_a_shell():
    route = {"method": "POST", "path": "/a", "example": "/a?x=1", "body": {"text": "it's"}}
    line = curl_line(route, "http://h/lb/api")
    assert line.startswith("curl -s -X POST 'http://h/lb/api/a?x=1' -H 'Content-Type: application/json' -d ")


def test_the_banner_shows_the_routes_and_how_to_call_one(dev):
    shown = dev.text
    assert f"{dev.url}/lb/api  cpu http · cpu3c-2-4 · workers 0-1 · 4 requests a worker · idle 5 s" in shown
    assert "request limit 5.5 min" in shown
    assert "    GET       /items/{item_id}\n    POST      /add\n" in shown
    assert f"curl -s {dev.url}/lb/api/items/1\n" in shown


def test_run_sends_a_request_and_prints_the_answer(dev, flashkit, folder):
    def run(*words):
        return flashkit("run", "api", *words, folder=folder)

    assert run("GET", "/items/3?q=x", "--json").out == '{"item":3,"q":"x"}\n'
    assert run("post", "/add", '{"a": 2}').out == "3\n"
    assert run("GET", "/text").out == "only text\n"
    assert run("POST", "/words", '{"line": "a b"}', "--stream").out == "a b \n"
    failed = run("GET", "/fail")
    assert failed.code == 1
    assert failed.err.startswith("LookupError: nothing found\n")
    wrong = run("GET", "/items/three")
    assert wrong.code != 0
    assert "`item_id` is 'three'" in wrong.err
    unknown = run("GET", "/nope")
    assert unknown.code == 2
    assert "Not Found: GET /nope" in unknown.err
    assert "hint: endpoint 'api' has GET /items/{item_id}, POST /add, GET /text" in unknown.err
    many = run("GET", "/text", "{}", "{}")
    assert many.code == 2
    assert "one JSON is enough" in many.err
    job = run("{}")
    assert "has no queue and no jobs" in job.err
    dev.wait_for("/items/3  200")


def test_a_job_needs_one_json(flashkit, folder, dev):
    result = flashkit("run", "api", "{}", "{}", folder=folder)
    assert "one JSON is enough" in result.err


async def test_the_tools_of_an_app_leave_it_out(folder):
    endpoints = await describe_apps([folder / "app.py"], env={})
    assert describe_spec(endpoints[0].spec).startswith("cpu http · ")
    assert [route["method"] for route in endpoints[0].routes][-1] == "WEBSOCKET"
    with pytest.raises(ConfigurationError, match="no CPU endpoint"):
        make_tools(endpoints)


async def test_lines_of_json_name_its_address(folder):
    endpoints = await describe_apps([folder / "app.py"], env={})
    out = io.StringIO()
    lines = JsonLines(log_level="warning", stream=out)
    lines.show_banner(endpoints, url="http://h", state_dir=Path(), is_reloading=False)
    assert '"url":"http://h/lb/api"' in out.getvalue()
