"""Write the structure of the vendor's REST v2 description, without its prose: what requests and answers look like.

    python scripts/reduce_openapi.py OPENAPI.json > flashkit/emulator/management/schema.json

Of the routes that the local platform serves, the result has parameters, bodies, statuses and headers, and the schemas
that they refer to. Descriptions, examples, titles and vendor extensions are left out. The local management API
checks requests with it; the tests check every request and every answer with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KEPT_PATHS = (
    "/v2/serverless",
    "/v2/templates",
    "/v2/network-volumes",
    "/v2/registries",
    "/v2/catalog/gpus",
    "/v2/catalog/cpus",
    "/v2/catalog/datacenters",
)
LEFT_OUT = ("/v2/registries/delegations",)
METHODS = ("get", "post", "put", "patch", "delete")
PROSE = {"description", "summary", "title", "example", "examples", "externalDocs", "tags", "discriminator"}
COMPONENTS = ("schemas", "parameters", "responses", "headers")


def main(arguments: list[str]) -> int:
    """Run the command line and return the exit code."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    print(json.dumps(reduce(json.loads(Path(arguments[0]).read_bytes())), indent=1, sort_keys=True))
    return 0


def reduce(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document's structure: the kept routes, and the components that they lead to."""
    paths = {path: _reduce_path(item) for path, item in document["paths"].items() if _is_kept(path)}
    return {
        "openapi": document["openapi"],
        "info": {"title": "structure of REST v2", "version": document["info"]["version"]},
        "paths": paths,
        "components": _reachable_components(paths, document["components"]),
    }


def _is_kept(path: str) -> bool:
    return path.startswith(KEPT_PATHS) and not path.startswith(LEFT_OUT)


def _reduce_path(item: dict[str, Any]) -> dict[str, Any]:
    operations = {method: without_prose(item[method]) for method in METHODS if method in item}
    shared = {"parameters": without_prose(item["parameters"])} if "parameters" in item else {}
    return shared | operations


def without_prose(value: Any, *, has_names: bool = False) -> Any:
    """Return the value without prose; the keys of an object of named things are names, whatever they are."""
    if isinstance(value, list):
        return [without_prose(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: without_prose(item, has_names=not has_names and key in ("properties", "schemas", "responses", "content"))
        for key, item in value.items()
        if has_names or not (key in PROSE or key.startswith("x-"))
    }


def _reachable_components(paths: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {kind: {} for kind in COMPONENTS}
    open_ends = list(_references(paths))
    while open_ends:
        _, kind, name = open_ends.pop().removeprefix("#/").split("/")
        if name not in found[kind]:
            found[kind][name] = without_prose(components[kind][name])
            open_ends += _references(found[kind][name])
    return found


def _references(value: Any) -> Iterator[str]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, dict) and isinstance(value.get("$ref"), str):
        yield value["$ref"]
    for item in items:
        yield from _references(item)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
