"""What the terminal shows of load-balanced endpoints: how their routes are called, and a line for each request."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, Final

import orjson
from rich.text import Text

from flashkit.cli.apps import AppEndpoint
from flashkit.cli.quantities import format_bytes, format_ms
from flashkit.emulator.events import RequestEvent
from flashkit.http_routes import WEBSOCKET

_ROUTES_SHOWN: Final = 8
_METHOD_WIDTH: Final = 9


def http_root(url: str, name: str) -> str:
    """Return the URL below which a load-balanced endpoint's own paths are on a local platform."""
    return f"{url}/lb/{name}"


def describe_routes(endpoint: AppEndpoint, *, url: str) -> Text:
    """Return a line for each of the first routes, and how to call one of them."""
    text = Text()
    for route in endpoint.routes[:_ROUTES_SHOWN]:
        text.append(f"    {route['method']:<{_METHOD_WIDTH}} {route['path']}\n", style="dim")
    if len(endpoint.routes) > _ROUTES_SHOWN:
        text.append(f"    and {len(endpoint.routes) - _ROUTES_SHOWN} more\n", style="dim")
    callable_routes = [route for route in endpoint.routes if route["method"] != WEBSOCKET]
    if callable_routes:
        text.append(f"    {curl_line(callable_routes[0], http_root(url, endpoint.name))}\n", style="dim")
    return text


def curl_line(route: Mapping[str, Any], root: str) -> str:
    """Return the command that calls a route with values that it takes."""
    words = ["curl", "-s"]
    if route["method"] not in ("GET", "*"):
        words += ["-X", str(route["method"])]
    words.append(f"{root}{route['example']}")
    if "body" in route:
        words += ["-H", "Content-Type: application/json", "-d", orjson.dumps(route["body"]).decode()]
    return shlex.join(words)


def describe_request(event: RequestEvent) -> Text:
    """Return the line about a request: what was asked, what was answered, and where its time went."""
    style = _style_of(event.status)
    facts = " · ".join(_facts(event))
    status = str(event.status or "hung up")
    return Text.assemble(
        (f"{event.method:<7}  ", "dim"), event.path, "  ", (status, style), f"  {facts}",
        (f"  {event.problem}" if event.problem and event.status else "", style),
    )  # fmt: skip


def mark_of(event: RequestEvent) -> tuple[str, str]:
    """Return the sign at the begin of a request's line, and its style."""
    is_fine = event.status is not None and event.status < 400 and not event.problem  # noqa: PLR2004
    return ("✓" if is_fine else "✗", _style_of(event.status))


def _style_of(status: int | None) -> str:
    if status is None:
        return "yellow"
    if status < 400:  # noqa: PLR2004
        return "green"
    return "yellow" if status < 500 else "red"  # noqa: PLR2004


def _facts(event: RequestEvent) -> list[str]:
    facts = [f"waited {format_ms(event.wait_ms)}"] if event.wait_ms else []
    if event.first_byte_ms is not None and event.run_ms is not None:
        facts.append(f"first byte {format_ms(event.first_byte_ms)}")
    if event.run_ms is not None:
        facts.append(f"run {format_ms(event.run_ms)}")
    return [*facts, f"{format_bytes(event.request_bytes)} → {format_bytes(event.response_bytes)}"]
