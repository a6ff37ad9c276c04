"""Checks what went over the wire with the vendor's description of REST v2: routes, bodies, statuses, headers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

SCHEMA = Path(__file__).parents[2] / "flashkit" / "emulator" / "management" / "schema.json"


@dataclass
class Exchange:
    """One request and its answer."""

    method: str
    path: str
    """Below `/v2`, with `/v2`; or `/graphql`."""
    query: dict[str, str]
    sent: Any
    status: int
    headers: Mapping[str, str]
    received: Any
    note: str = ""
    request_headers: dict[str, str] = field(default_factory=dict)

    @property
    def is_write(self) -> bool:
        if self.path == "/graphql":
            return str(self.sent["query"]).lstrip().startswith("mutation")
        return self.method != "GET"

    def __str__(self) -> str:
        return f"{self.method} {self.path} -> {self.status}"


@cache
def document() -> dict[str, Any]:
    return json.loads(SCHEMA.read_bytes())


def find_operation(method: str, path: str) -> dict[str, Any]:
    """Return the operation of the description that a request is for."""
    for template, item in document()["paths"].items():
        pattern = re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(template))
        if re.fullmatch(pattern, path) and method.lower() in item:
            return item[method.lower()]
    raise AssertionError(f"the description has no {method} {path}")


def check(exchange: Exchange) -> None:
    """Fail when a request or its answer is not as the description says."""
    if exchange.path == "/graphql":
        return
    operation = find_operation(exchange.method, exchange.path)
    known = {resolve(item)["name"] for item in operation.get("parameters", ()) if resolve(item)["in"] == "query"}
    assert exchange.query.keys() <= known | {"cursor"}, f"{exchange}: {exchange.query}"
    body = operation.get("requestBody")
    if body is not None and exchange.status < 400:
        validate(exchange.sent, body["content"]["application/json"]["schema"], f"{exchange} was sent")
    elif body is None:
        assert exchange.sent is None, f"{exchange} was sent a body"
    check_answer(exchange, operation["responses"])


def check_answer(exchange: Exchange, responses: dict[str, Any]) -> None:
    status = str(exchange.status)
    assert status in responses or exchange.status >= 400, f"{exchange} is not documented"
    response = resolve(responses.get(status, responses["default"]))
    content = response.get("content")
    if content is None:
        assert exchange.received is None, f"{exchange} has a body"
        return
    kind = exchange.headers["Content-Type"].partition(";")[0]
    assert kind in content, f"{exchange}: {kind}, not {', '.join(content)}"
    if kind != "text/event-stream":
        validate(exchange.received, content[kind]["schema"], f"{exchange} answered")
    for name, header in response.get("headers", {}).items():
        if name in exchange.headers:
            value: Any = exchange.headers[name]
            schema = resolve(header)["schema"]
            validate(int(value) if schema.get("type") == "integer" else value, schema, f"{exchange} header {name}")


def resolve(value: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in value:
        return value
    found: Any = document()
    for part in value["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return resolve(found)


@cache
def validator(schema: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**json.loads(schema), "components": document()["components"]})


def validate(value: Any, schema: dict[str, Any], what: str) -> None:
    errors = [f"{error.json_path}: {error.message}" for error in validator(json.dumps(schema)).iter_errors(value)]
    assert not errors, f"{what} {json.dumps(value)[:1000]}: {errors}"
