"""What differs between two JSON values, as paths: for the states of two sessions or two turns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

_PLAIN_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ABSENT: Final = object()


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where two values differ."""

    path: str
    """As `$.state.notes[2].title`."""
    what: Literal["added", "removed", "changed"]
    before: Any = None
    after: Any = None


def compare(before: Any, after: Any, *, path: str = "$") -> Iterator[Difference]:
    """Yield the places where they differ, in the order of the first value; lists are compared by position."""
    match before, after:
        case dict(), dict():
            for name in [*before, *(name for name in after if name not in before)]:
                yield from _compare_part(before.get(name, _ABSENT), after.get(name, _ABSENT), path + _member(name))
        case list(), list():
            for index in range(max(len(before), len(after))):
                old, new = (values[index] if index < len(values) else _ABSENT for values in (before, after))
                yield from _compare_part(old, new, f"{path}[{index}]")
        case _ if type(before) is not type(after) or before != after:
            yield Difference(path, "changed", before, after)


def _compare_part(before: Any, after: Any, path: str) -> Iterator[Difference]:
    if before is _ABSENT:
        yield Difference(path, "added", after=after)
    elif after is _ABSENT:
        yield Difference(path, "removed", before=before)
    else:
        yield from compare(before, after, path=path)


def _member(name: str) -> str:
    return f".{name}" if _PLAIN_NAME.fullmatch(name) else f"[{json.dumps(name)}]"
