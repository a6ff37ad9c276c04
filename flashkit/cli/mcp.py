"""`flashkit mcp`: CPU endpoints as tools of the Model Context Protocol, for any client that speaks it.

A tool is one endpoint: its name, its docstring, the JSON schema of its typed parameters. A call is a job on the
platform that is found when the call comes in, so `flashkit dev` may be started and stopped in between. What
goes wrong is a tool's error with the rendered report, so that the model reads the hint that people read.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from flashkit.cli.apps import AppEndpoint, describe_apps
from flashkit.cli.dev import PortTaken
from flashkit.cli.run import normalise_url
from flashkit.client import Client
from flashkit.errors import ConfigurationError, FlashkitError
from flashkit.handler import encode_json
from flashkit.settings import Settings
from flashkit.spec import Kind

_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Tool:
    """One endpoint as clients see it."""

    name: str
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a call came to."""

    text: str
    value: Mapping[str, Any] | None = None
    """The output, if it is an object."""
    is_error: bool = False


@click.command("mcp")
@click.argument("apps", nargs=-1, metavar="[APP.py]...", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--endpoint", "names", multiple=True, metavar="NAME", help="Offer an endpoint without knowing its app.")
@click.option("--url", help="The platform's address, instead of the running `flashkit dev` or Runpod.")
@click.option(
    "--http",
    "port",
    type=click.IntRange(0, 65535),
    help="Serve streamable HTTP on this port of 127.0.0.1; 0 takes any.",
)
def command(apps: tuple[Path, ...], *, names: tuple[str, ...], url: str | None, port: int | None) -> int:
    """Offer the CPU endpoints of APP.py as tools of the Model Context Protocol (MCP), on standard input and output.

    Parameters are described by their types, the tool by its docstring. Calls run as jobs on the `flashkit dev` of
    the app's folder or one above it, else on Runpod (RUNPOD_API_KEY). In a client's settings, the command is
    `flashkit` and the arguments are `mcp /path/to/app.py`.
    """
    if not apps and not names:
        raise click.UsageError("name an APP.py, or endpoints by --endpoint NAME")
    _require_mcp()
    folder = apps[0].resolve().parent if apps else Path.cwd()
    toolbox = Toolbox(folder=folder, base_url=normalise_url(url) if url else None)
    asyncio.run(_serve(toolbox, [app.resolve() for app in apps], names, port))
    return 0


class Toolbox:
    """Runs calls as jobs, on the platform that is there at the time."""

    def __init__(self, *, folder: Path, base_url: str | None = None) -> None:
        self._folder = folder
        self._base_url = base_url
        self._client: Client | None = None

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run a job to its end; if the caller gives up, it is cancelled."""
        try:
            client = await self._connect()
            items = [item async for item in client.endpoint(name).stream(dict(arguments))]
        except FlashkitError as exc:
            return ToolResult(exc.report.render(), is_error=True)
        return _as_result(items)

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()

    async def _connect(self) -> Client:
        settings = Settings.from_environment(folder=self._folder)
        if self._base_url is not None:
            settings = replace(settings, base_url=self._base_url)
        if self._client is None or self._client.settings != settings:
            await self.close()
            self._client = Client(settings)
        return self._client


def make_tools(endpoints: Sequence[AppEndpoint], names: Sequence[str] = ()) -> list[Tool]:
    """Return the tools of CPU endpoints, and of endpoints of which only the names are known.

    Raises:
        ConfigurationError: There is none.
    """
    tools = {
        endpoint.name: Tool(
            endpoint.name, endpoint.description or f"{endpoint.name}{endpoint.signature}", endpoint.schema
        )
        for endpoint in endpoints
        if endpoint.spec.kind is Kind.CPU and not endpoint.spec.load_balanced
    }
    for name in names:
        tools.setdefault(name, Tool(name, f"The endpoint {name}.", {"type": "object"}))
    if not tools:
        found = ", ".join(f"{endpoint.name} ({endpoint.spec.kind})" for endpoint in endpoints)
        raise ConfigurationError(
            f"there is no CPU endpoint to offer, only {found}",
            hint="tools are @cpu_endpoint functions; offer another kind by --endpoint NAME",
        )
    return list(tools.values())


def _as_result(items: Sequence[Any]) -> ToolResult:
    """Return one output as it is, and the partial outputs of a streaming handler as one text or list."""
    if items and all(isinstance(item, str) for item in items):
        return ToolResult("".join(items))
    output = items[0] if len(items) == 1 else list(items) or None
    return ToolResult(encode_json(output).decode(), output if isinstance(output, dict) else None)


async def _serve(toolbox: Toolbox, apps: Sequence[Path], names: Sequence[str], port: int | None) -> None:
    tools = make_tools(await describe_apps(apps, env={}), names)
    server = _make_server(toolbox, tools)
    try:
        if port is None:
            await _serve_stdio(server)
        else:
            await _serve_http(server, port)
    finally:
        await toolbox.close()


def _make_server(toolbox: Toolbox, tools: Sequence[Tool]) -> Any:
    import mcp_types as types
    from mcp.server.lowlevel import Server

    from flashkit import __version__

    listed = [
        types.Tool(name=tool.name, description=tool.description, input_schema=dict(tool.schema)) for tool in tools
    ]
    known = {tool.name for tool in tools}

    async def list_tools(_context: Any, _params: Any) -> Any:
        return types.ListToolsResult(tools=listed)

    async def call_tool(_context: Any, params: Any) -> Any:
        if params.name in known:
            result = await toolbox.call(params.name, params.arguments or {})
        else:
            result = ToolResult(f"there is no tool {params.name!r}; there are: {', '.join(known)}", is_error=True)
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=result.text)],
            structured_content=result.value,
            is_error=result.is_error,
        )

    return Server("flashkit", version=__version__, on_list_tools=list_tools, on_call_tool=call_tool)


async def _serve_stdio(server: Any) -> None:
    from mcp.server.stdio import stdio_server

    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())


async def _serve_http(server: Any, port: int) -> None:
    import uvicorn

    with _listen(port) as listener:
        sys.stderr.write(f"MCP at http://{_LOOPBACK}:{listener.getsockname()[1]}/mcp\n")
        sys.stderr.flush()
        config = uvicorn.Config(server.streamable_http_app(host=_LOOPBACK), log_level="warning")
        await uvicorn.Server(config).serve(sockets=[listener])


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((_LOOPBACK, port))
    except OSError as exc:
        raise PortTaken(f"port {port} cannot be had: {exc.strerror}", hint="pass another one with --http") from exc


def _require_mcp() -> None:
    try:
        import mcp_types  # noqa: F401
    except ModuleNotFoundError as exc:
        raise ConfigurationError(
            "`flashkit mcp` needs the package mcp, version 2 or newer",
            hint="pip install 'flashkit-serverless[dev,mcp]'",
        ) from exc
