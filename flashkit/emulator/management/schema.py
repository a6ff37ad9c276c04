"""The vendor's schema of REST v2, and what a body gets wrong by it.

`schema.json` has the structure of the vendor's OpenAPI description, without its prose; `scripts/reduce_openapi.py`
writes it. Messages name places and rules, never the values: a body may hold secrets.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import orjson

_FILE: Final = Path(__file__).with_name("schema.json")
_MOST_ERRORS: Final = 20


@functools.cache
def load_schema() -> Mapping[str, Any]:
    """Return the whole document."""
    document: Mapping[str, Any] = orjson.loads(_FILE.read_bytes())
    return document


def find_errors(name: str, value: Any) -> list[str]:
    """Return what is wrong with a value by the schema of this name, in words; nothing where it fits."""
    errors = sorted(_validator(name).iter_errors(value), key=lambda error: error.json_path)
    lines = dict.fromkeys(line for error in errors for line in _describe(error))
    return list(lines)[:_MOST_ERRORS]


@functools.cache
def _validator(name: str) -> Any:
    import jsonschema  # takes a tenth of a second: only who manages endpoints waits for it

    return jsonschema.Draft202012Validator({**load_schema(), "$ref": f"#/components/schemas/{name}"})


def _describe(error: Any) -> Iterator[str]:
    place = error.json_path
    match error.validator:
        case "additionalProperties" | "unevaluatedProperties":
            if unknown := sorted(error.instance.keys() - _known_properties(error.schema)):
                yield f"{place}: additional properties {', '.join(map(repr, unknown))} not allowed"
        case "required":
            missing = [name for name in error.validator_value if name not in error.instance]
            yield f"{place}: missing property {', '.join(map(repr, missing))}"
        case "dependentRequired":
            pairs = (f"{name!r} needs {', '.join(map(repr, needed))}" for name, needed in error.validator_value.items())
            yield f"{place}: {'; '.join(pairs)}"
        case "allOf" | "anyOf" | "oneOf" | "if" if error.context:
            deepest = max(error.context, key=lambda inner: len(inner.absolute_path))
            yield f"{deepest.json_path}: does not fit any of the allowed forms"
        case rule:
            yield f"{place}: does not satisfy {rule} {error.validator_value!r}"


def _known_properties(schema: Mapping[str, Any]) -> set[str]:
    """Return all properties that a schema names anywhere: one that breaks a rule counts as unknown for the library."""
    if reference := schema.get("$ref"):
        return _known_properties(load_schema()["components"]["schemas"][reference.rpartition("/")[2]])
    known = set(schema.get("properties", ()))
    return known.union(*(_known_properties(part) for part in schema.get("allOf", ())))
