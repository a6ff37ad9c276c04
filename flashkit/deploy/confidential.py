"""Values that must not be shown or sent in the clear: which ones they are, and how they are referred to.

Runpod keeps secrets by name; a variable whose value is `{{ RUNPOD_SECRET_name }}` gets the secret when a worker starts.
Such a reference may be shown. Anything that looks like a secret itself is not deployed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from flashkit.checks.secrets import is_telling_name, secret_in_value

MASK: Final = "•••"
_REFERENCE: Final = re.compile(r"\{\{\s*RUNPOD_SECRET_([A-Za-z0-9_.-]+)\s*\}\}")
_PLAIN_WORDS: Final = frozenset({"true", "false", "yes", "no", "on", "off", "none", "auto", ""})


def reference_to(name: str) -> str:
    """Return what stands for a secret in an environment."""
    return f"{{{{ RUNPOD_SECRET_{name} }}}}"


def secrets_named(env: Mapping[str, str]) -> list[str]:
    """Return the secrets that an environment refers to."""
    return sorted({name for value in env.values() for name in _REFERENCE.findall(value)})


def looks_secret(name: str, value: str, *, plain: Iterable[str] = ()) -> bool:
    """Return whether a variable's value must not be read by others.

    Args:
        name: The variable.
        value: Its value; a reference to a secret is none itself.
        plain: Variables that are said to be harmless.
    """
    if name in set(plain):
        return False
    rest = _REFERENCE.sub("", value).strip()
    if not rest:
        return False
    if secret_in_value(name, rest) is not None:
        return True
    is_word = rest.lower() in _PLAIN_WORDS or bool(re.fullmatch(r"[\d.,_]+", rest))
    return is_telling_name(name) and not is_word and rest == value.strip()


def shown(name: str, value: str | None, *, plain: Iterable[str] = ()) -> str | None:
    """Return a variable's value as it may be printed."""
    return MASK if value is not None and looks_secret(name, value, plain=plain) else value


def scrub(text: str, values: Iterable[str]) -> str:
    """Return a text without these values, wherever they stand in it."""
    for value in sorted(filter(None, values), key=len, reverse=True):
        text = text.replace(value, MASK)
    return text
