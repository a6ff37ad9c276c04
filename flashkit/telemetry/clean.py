"""Texts of spans made safe to show: whoever wrote them, they move no cursor and hide nothing."""

from __future__ import annotations

import unicodedata
from typing import Final

_SHOWN: Final = "\N{REPLACEMENT CHARACTER}"
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Categories of characters that control a terminal, turn the direction of text, or cannot be encoded."""


def one_line(text: str, limit: int) -> str:
    """Return a text as one line of at most so many characters, without characters that control anything."""
    cleaned = "".join(_clean(character) for character in text[: limit + 1])
    return cleaned if len(cleaned) <= limit else cleaned[: limit - 1] + "…"


def _clean(character: str) -> str:
    if character in "\n\r\t":
        return " "
    return _SHOWN if unicodedata.category(character) in _INVISIBLE else character
