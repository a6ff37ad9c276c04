"""What a scripted model refuses, as a real one would: values out of range, an unknown model, too long a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

_NOT_FOUND: Final = 404
_BAD_REQUEST: Final = 400
_TYPES: Final = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_MOST_CHOICES: Final = 128


class Refusal(NamedTuple):
    """Why a request is refused."""

    status: int
    message: str
    param: str | None = None


def find_mistake(body: Any, *, model: str, is_chat: bool) -> Refusal | None:
    """Return the first mistake of a request's body; None where there is none."""
    if not isinstance(body, Mapping):
        return Refusal(_BAD_REQUEST, "the body is not a JSON object")
    if body.get("model") not in (None, "", model):
        return Refusal(_NOT_FOUND, f"The model `{body['model']}` does not exist.", "model")
    return (_check_messages(body) if is_chat else _check_prompt(body)) or _check_values(body) or _check_format(body)


def _check_messages(body: Mapping[str, Any]) -> Refusal | None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return Refusal(_BAD_REQUEST, "messages must be a list of at least one message", "messages")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            return Refusal(_BAD_REQUEST, f"messages[{number}] has no role", "messages")
    return None


def _check_prompt(body: Mapping[str, Any]) -> Refusal | None:
    if not isinstance(body.get("prompt"), str):
        return Refusal(_BAD_REQUEST, "prompt must be a text", "prompt")
    return None


def _check_values(body: Mapping[str, Any]) -> Refusal | None:
    for name, (is_right, wanted) in _RANGES.items():
        value = body.get(name)
        if value is not None and not (_is_number(value) and is_right(value)):
            return Refusal(_BAD_REQUEST, f"{name} must be {wanted}, got {value!r}.", name)
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: float) -> bool:
    return isinstance(value, int) and value >= 1


_RANGES: Final[Mapping[str, tuple[Callable[[float], bool], str]]] = {
    "max_tokens": (_is_count, "at least 1"),
    "max_completion_tokens": (_is_count, "at least 1"),
    "n": (lambda value: _is_count(value) and value <= _MOST_CHOICES, f"from 1 to {_MOST_CHOICES}"),
    "temperature": (lambda value: value >= 0, "non-negative"),
    "top_p": (lambda value: 0 < value <= 1, "in (0, 1]"),
    "presence_penalty": (lambda value: -2 <= value <= 2, "in [-2, 2]"),  # noqa: PLR2004
    "frequency_penalty": (lambda value: -2 <= value <= 2, "in [-2, 2]"),  # noqa: PLR2004
}


def _check_format(body: Mapping[str, Any]) -> Refusal | None:
    wanted = body.get("response_format")
    if not isinstance(wanted, Mapping) or wanted.get("type") != "json_schema":
        return None
    described = wanted.get("json_schema")
    schema = described.get("schema") if isinstance(described, Mapping) else None
    if not isinstance(schema, Mapping) or not _is_schema(schema):
        return Refusal(_BAD_REQUEST, f"the schema of response_format is invalid: {schema!r:.200}", "response_format")
    return None


def _is_schema(schema: Any) -> bool:
    """Return False for what certainly is no schema; a scripted model enforces none."""
    if not isinstance(schema, Mapping):
        return isinstance(schema, bool)
    kinds = schema.get("type", [])
    properties = schema.get("properties", {})
    if not isinstance(properties, Mapping) or not _TYPES.issuperset([kinds] if isinstance(kinds, str) else kinds):
        return False
    return all(map(_is_schema, properties.values())) and _is_schema(schema.get("items", True))


def wants_json(body: Mapping[str, Any]) -> bool:
    """True when the answer must be JSON."""
    wanted = body.get("response_format")
    return isinstance(wanted, Mapping) and wanted.get("type") in ("json_schema", "json_object")


def limit_of(body: Mapping[str, Any]) -> int | None:
    """Return how many tokens the answer may have at most."""
    limit: int | None = body.get("max_completion_tokens") or body.get("max_tokens")
    return limit


def stops_of(body: Mapping[str, Any]) -> list[str]:
    """Return the texts at which the answer ends."""
    stop = body.get("stop") or []
    return [stop] if isinstance(stop, str) else [text for text in stop if isinstance(text, str) and text]
