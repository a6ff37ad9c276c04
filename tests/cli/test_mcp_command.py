"""`flashkit mcp` as a client of the official package sees it, with jobs on a real `flashkit dev`."""

import asyncio
import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys

import pytest

HAS_MCP = importlib.util.find_spec("mcp_types") is not None
if HAS_MCP:
    from mcp.client.client import Client
    from mcp.client.stdio import StdioServerParameters, stdio_client

FLASHKIT = "from flashkit.cli import main; main()"
TOOLS = '''
import asyncio
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from flashkit import cpu_endpoint, gpu_endpoint


@cpu_endpoint(name="add")
def add(a: int, b: int = 2, mode: Literal["plain", "loud"] = "plain") -> dict[str, int]:
    """Add two numbers.

    The sum is exact.
    """
    return {"sum": a + b}


class Query(BaseModel):
    text: Annotated[str, Field(description="what to look for")]
    limit: int = 3


@cpu_endpoint(name="search")
def search(query: Query) -> list[str]:
    return [query.text] * query.limit


@cpu_endpoint(name="stream")
async def stream(n: int):
    for index in range(n):
        yield f"{index} "


@cpu_endpoint(name="fail")
def fail(name: str) -> str:
    raise LookupError(f"there is no {name}")


@cpu_endpoint(name="slow")
async def slow(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


@gpu_endpoint(name="model", gpu="A100")
def model(prompt: str) -> str:
    return prompt
'''
pytestmark = pytest.mark.filterwarnings("default")  # the packages under test have warnings of their own


@pytest.fixture(autouse=True)
def _packages():
    if not HAS_MCP and os.environ.get("FLASHKIT_REQUIRE_EVERYTHING"):
        pytest.fail("the package mcp is missing")
    if not HAS_MCP:
        pytest.skip("the package mcp is missing")


@pytest.fixture
def project(tmp_path):
    (tmp_path / "app.py").write_text(TOOLS)
    (tmp_path / "elsewhere").mkdir()
    return tmp_path


def parameters(project, *arguments, **environment):
    """The server as a client's settings would start it: in a folder that is not the app's."""
    return StdioServerParameters(
        command=sys.executable,
        args=["-c", FLASHKIT, "mcp", *arguments],
        cwd=str(project / "elsewhere"),
        env={"PATH": os.environ["PATH"], **environment},
    )


@contextlib.asynccontextmanager
async def connected(project, *arguments, **environment):
    async with Client(
        stdio_client(parameters(project, *(arguments or (str(project / "app.py"),)), **environment))
    ) as client:
        yield client


def text_of(result):
    (content,) = result.content
    return content.text


async def test_tools_are_the_cpu_endpoints_with_the_schema_of_their_parameters(project):
    async with connected(project) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert sorted(tools) == ["add", "fail", "search", "slow", "stream"]
    assert tools["add"].description == "Add two numbers.\n\nThe sum is exact."
    schema = tools["add"].input_schema
    assert schema["type"] == "object"
    assert schema["required"] == ["a"]
    assert schema["properties"]["b"]["type"] == "integer"
    assert (schema["properties"]["b"]["default"], schema["properties"]["mode"]["default"]) == (2, "plain")
    assert schema["properties"]["mode"]["enum"] == ["plain", "loud"]
    assert tools["search"].input_schema["properties"]["text"]["description"] == "what to look for"
    assert tools["search"].input_schema["required"] == ["text"]
    assert tools["slow"].description == "slow(seconds: float)"


async def test_calls_are_jobs_on_the_running_platform(project, start_dev):
    start_dev(project)
    async with connected(project) as client:
        result = await client.call_tool("add", {"a": 40})
        assert (result.is_error, text_of(result), result.structured_content) == (False, '{"sum":42}', {"sum": 42})
        assert json.loads(text_of(await client.call_tool("search", {"text": "x", "limit": 2}))) == ["x", "x"]
        assert text_of(await client.call_tool("stream", {"n": 3})) == "0 1 2 "


async def test_errors_are_tool_errors_with_the_rendered_report(project, start_dev):
    start_dev(project)
    async with connected(project) as client:
        result = await client.call_tool("fail", {"name": "Ada"})
        assert result.is_error
        lines = text_of(result).splitlines()
        assert lines[0] == "LookupError: there is no Ada"
        assert lines[1].startswith("  at app.py:")
        wrong = text_of(await client.call_tool("add", {"aa": 1}))
        assert "did you mean `a`" in wrong
        unknown = await client.call_tool("nothing", {})
        assert unknown.is_error
        assert "there is no tool 'nothing'" in text_of(unknown)


async def test_without_a_platform_the_error_says_what_to_start_and_a_later_one_is_found(project, start_dev):
    async with connected(project) as client:
        result = await client.call_tool("add", {"a": 1})
        assert result.is_error
        assert "flashkit dev" in text_of(result)
        start_dev(project)
        assert text_of(await client.call_tool("add", {"a": 1})) == '{"sum":3}'


async def test_a_call_that_is_given_up_cancels_its_job(project, start_dev):
    dev = start_dev(project, "--log-level", "info")
    async with connected(project) as client:
        call = asyncio.create_task(client.call_tool("slow", {"seconds": 60}))
        await asyncio.to_thread(dev.wait_for, "▸ slow")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.to_thread(dev.wait_for, "⊘ slow")


async def test_endpoints_by_name_and_a_platform_by_address(project, start_dev):
    dev = start_dev(project)
    async with connected(project, "--endpoint", "model", "--url", dev.url) as client:
        (tool,) = (await client.list_tools()).tools
        assert (tool.name, tool.input_schema) == ("model", {"type": "object"})
        assert text_of(await client.call_tool("model", {"prompt": "hi"})) == "hi"


async def test_streamable_http_serves_on_loopback(project, start_dev):
    start_dev(project)
    process = subprocess.Popen(
        [sys.executable, "-c", FLASHKIT, "mcp", "app.py", "--http", "0"], cwd=project, stderr=subprocess.PIPE, text=True
    )
    try:
        url = process.stderr.readline().rpartition(" ")[2].strip()
        assert url.startswith("http://127.0.0.1:")
        async with Client(url) as client:
            assert text_of(await client.call_tool("add", {"a": 1})) == '{"sum":3}'
    finally:
        process.terminate()
        process.wait(20)
        process.stderr.close()


def test_an_app_without_cpu_endpoints_and_no_app_at_all_are_refused(flashkit, project):
    (project / "gpu.py").write_text(TOOLS[: TOOLS.index("@cpu_endpoint")] + TOOLS[TOOLS.index("@gpu_endpoint") :])
    result = flashkit("mcp", "gpu.py", folder=project)
    assert (result.code, result.out) == (2, "")
    assert "model (gpu)" in result.err
    assert flashkit("mcp", folder=project).code == 2


def test_a_taken_port_is_told_from_other_errors(flashkit, project):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = flashkit("mcp", "app.py", "--http", str(taken.getsockname()[1]), folder=project)
    assert result.code == 4
    assert "pass another one with --http" in result.err
