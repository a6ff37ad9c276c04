"""The committed structure of the vendor's description: no prose in it, complete, and made by the script."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flashkit.emulator.management.schema import find_errors, load_schema
from tests.deploy.openapi import Exchange, check, document, resolve

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "reduce_openapi.py"
VENDORS: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Vendor's title", "version": "2.0.0", "description": "words"},
    "paths": {
        "/v2/serverless": {
            "get": {
                "summary": "words", "description": "words", "operationId": "list", "x-code": 1,
                "responses": {"200": {"description": "words", "content": {"application/json": {
                    "schema": {"$ref": "#/components/schemas/List"}, "examples": {"one": {}}}}}},
            },
        },
        "/v2/pods": {"get": {"responses": {"200": {"$ref": "#/components/responses/Pods"}}}},
    },
    "components": {
        "schemas": {
            "List": {"type": "object", "description": "words", "properties": {
                "title": {"type": "string", "title": "words"}, "description": {"$ref": "#/components/schemas/Text"}}},
            "Text": {"type": "string", "examples": ["x"], "enum": ["a"]},
            "Unused": {"type": "string"},
        },
        "responses": {"Pods": {"description": "words"}},
    },
}  # fmt: skip


def reduce(tmp_path: Path, value: Any) -> Any:
    (tmp_path / "vendor.json").write_text(json.dumps(value))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "vendor.json")], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_the_script_keeps_structure_and_drops_prose(tmp_path: Path):
    reduced = reduce(tmp_path, VENDORS)
    assert "words" not in json.dumps(reduced)
    assert list(reduced["paths"]) == ["/v2/serverless"]
    assert reduced["components"]["schemas"] == {
        "List": {"type": "object", "properties": {
            "title": {"type": "string"}, "description": {"$ref": "#/components/schemas/Text"}}},
        "Text": {"type": "string", "enum": ["a"]},
    }  # fmt: skip
    assert reduce(tmp_path, reduced) == reduced, "what is reduced already stays as it is"


def test_the_script_wants_a_file():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "OPENAPI.json" in done.stderr


def prose(value: Any, *, names: bool = False) -> list[str]:
    if isinstance(value, list):
        return [text for item in value for text in prose(item)]
    if not isinstance(value, dict):
        return []
    found = [] if names else [key for key in value if key in ("description", "summary", "example", "examples", "title")]
    found = [key for key in found if isinstance(value[key], str)]
    for key, item in value.items():
        found += prose(item, names=not names and key in ("properties", "schemas", "responses", "content"))
    return found


def test_the_committed_structure_has_no_prose():
    assert prose({key: value for key, value in document().items() if key != "info"}) == []


def test_every_reference_of_the_committed_structure_leads_somewhere():
    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                resolve(value)
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(document())
    assert load_schema() == document()


def test_what_is_wrong_with_a_value_is_said_without_the_value():
    body = {"name": "x", "image": "hunter2", "type": "QUEUE", "scaling": 3, "disk": 0, "hat": "hunter2"}
    errors = find_errors("CreateEndpointRequest", body)
    assert "$: additional properties 'hat' not allowed" in errors
    assert "$.disk: does not satisfy minimum 1" in errors
    assert "hunter2" not in str(errors)
    assert find_errors("UpdateNetworkVolumeRequest", {}) == ["$: does not satisfy minProperties 1"]


def exchange(**given: Any) -> Exchange:
    values: dict[str, Any] = {
        "method": "GET", "path": "/v2/registries", "query": {}, "sent": None, "status": 200,
        "headers": {"Content-Type": "application/json"}, "received": {"registries": []},
    }  # fmt: skip
    return Exchange(**{**values, **given})


@pytest.mark.parametrize("given", [
    {"path": "/v2/registrys"}, {"method": "PUT"}, {"received": {"registries": [{"id": 1}]}}, {"received": None},
    {"query": {"page": "1"}}, {"sent": {}}, {"status": 202}, {"headers": {"Content-Type": "text/html"}},
    {"method": "POST", "sent": {"name": "x"}, "status": 201, "received": {"id": "1", "name": "x"}},
])  # fmt: skip
def test_the_checker_of_exchanges_finds_what_is_not_documented(given: dict[str, Any]):
    check(exchange())
    with pytest.raises(AssertionError):
        check(exchange(**given))
