"""Tokens of language models, as outputs of OpenAI's shape count them in `usage`: whole, in parts, or as event text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import orjson

_LAST_PARTS: Final = 4
"""Where a list of parts speaks of tokens, it does so near its end: in the last part, or before `[DONE]`."""
_MOST_TOKENS: Final = 10**12


class Tokens(NamedTuple):
    """What went into a model and what came out."""

    prompt: int = 0
    completion: int = 0


def read_tokens(output: Any) -> Tokens:
    """Return the tokens that an output speaks of, by the names of OpenAI's older or newer API; none else."""
    if isinstance(output, list):
        found = (read_tokens(part) for part in reversed(output[-_LAST_PARTS:]) if not isinstance(part, list))
        return next(filter(any, found), Tokens())
    if isinstance(output, str):
        return _read_event_text(output) if speaks_of_tokens(output) else Tokens()
    usage = output.get("usage") if isinstance(output, Mapping) else None
    if not isinstance(usage, Mapping):
        return Tokens()
    return Tokens(_count(usage, "prompt_tokens", "input_tokens"), _count(usage, "completion_tokens", "output_tokens"))


def speaks_of_tokens(part: Any) -> bool:
    """True for a partial output that may count tokens; quick, as it is asked of each."""
    if isinstance(part, str):
        return '"usage"' in part and '_tokens"' in part
    return isinstance(part, Mapping) and isinstance(part.get("usage"), Mapping)


def _read_event_text(text: str) -> Tokens:
    for line in reversed(text.splitlines()):
        if line.startswith("data:") and speaks_of_tokens(line):
            try:
                return read_tokens(orjson.loads(line.removeprefix("data:")))
            except orjson.JSONDecodeError:
                continue
    return Tokens()


def _count(usage: Mapping[str, Any], *names: str) -> int:
    values = (usage.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and 0 <= value < _MOST_TOKENS), 0)
