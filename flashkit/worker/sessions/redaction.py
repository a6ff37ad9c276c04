"""Hides secrets in what people are shown of a session: previews, reasons and differences.

What is stored stays as it is, because steps answer from it. A value is hidden for the name that it has, or for
its look, if that tells a key of a well-known service.
"""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

HIDDEN: Final = "[hidden]"
_NAMES: Final = (
    r"pass(?:word|wd|phrase)|secret|token|(?:api|access|private|secret|session)[_-]?key"
    r"|authorization|cookie|credentials?"
)
_NAME: Final = re.compile(rf"(?:.*[^a-z])?(?:{_NAMES})", re.IGNORECASE)
_SUSPECT: Final = re.compile(_NAMES, re.IGNORECASE)
_PATH_PART: Final = re.compile(r"[A-Za-z_][\w-]*")
_LOOKS: Final = re.compile(
    r"(?P<scheme>\bBearer\s+)[^\s\"]+|(?P<user>://[^\s/:@\"]*:)[^\s/\"@]+(?=@)"
    r"|\b(?:sk|pk|rk)[-_][\w-]{16,}|\b(?:hf|rpa|glpat|npm)[-_]\w{16,}|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}"
    r"|\bxox[abprs]-[\w-]{10,}|\bAKIA[0-9A-Z]{16}\b|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+"
)


def hide_in_text(text: str) -> str:
    """Return the text without what looks like a key."""
    return _LOOKS.sub(lambda found: (found["scheme"] or found["user"] or "") + HIDDEN, text)


def hide_in_value(value: Any) -> Any:
    """Return a JSON value without what has the name or the look of a secret."""
    match value:
        case dict():
            return {name: _hide_named(name, part) for name, part in value.items()}
        case list():
            return [hide_in_value(part) for part in value]
        case str():
            return hide_in_text(value)
    return value


def hide_in_json(output: bytes) -> bytes:
    """Return a JSON text without what has the name or the look of a secret."""
    text = output.decode(errors="replace")
    if not (_SUSPECT.search(text) or _LOOKS.search(text)):
        return output
    try:
        return orjson.dumps(hide_in_value(orjson.loads(output)))
    except ValueError:
        return hide_in_text(text).encode()


def is_secret_path(path: str) -> bool:
    """True for the path of a difference that leads through such a name."""
    return any(is_secret_name(name) for name in _PATH_PART.findall(path))


def is_secret_name(name: str) -> bool:
    """True for a name such as `password`, `api_key` or `githubToken`; not for `tokens` or `max_tokens`."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1_\2", name)
    return _NAME.fullmatch(spaced) is not None


def _hide_named(name: str, value: Any) -> Any:
    says_nothing = value is None or value == "" or isinstance(value, bool)
    return hide_in_value(value) if says_nothing or not is_secret_name(name) else HIDDEN
