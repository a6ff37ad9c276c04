"""Comments that silence a rule in one place: `# flashkit: ignore[FK103]`.

A comment counts for its own line, and where it stands alone for the next line that is no comment. For an endpoint it
may be on any line of the decorator's call. Ids are named one by one; there is no comment that silences everything.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from flashkit.checks.project import Place

_COMMENT: Final = re.compile(r"#\s*flashkit:\s*ignore(?:\[(?P<ids>[^\]]*)\])?")
_HAS_COMMENTS: Final = (".py", ".txt", ".toml", ".yaml", ".yml", ".sh", ".cfg", ".ini", ".in")


@dataclass(frozen=True, slots=True)
class Ignore:
    """One id in one comment."""

    rule_id: str
    """Empty where the comment names none."""
    place: Place
    covers: int
    """The line that it is about."""


def find_ignores(files: Mapping[str, str]) -> list[Ignore]:
    """Return every id of every comment."""
    return [ignore for path, text in files.items() if "flashkit:" in text for ignore in _in_file(path, text)]


def covers(ignore: Ignore, rule_id: str, place: Place) -> bool:
    """Return whether the comment silences this rule there."""
    return ignore.rule_id == rule_id and ignore.place.file == place.file and ignore.covers in place.lines


def _in_file(path: str, text: str) -> Iterator[Ignore]:
    lines = text.splitlines()
    for number, comment in _comments(path, text):
        if found := _COMMENT.search(comment):
            ids = [each.strip() for each in (found["ids"] or "").split(",")]
            covered = _covered(lines, number)
            yield from (Ignore(each, Place(path, number), covered) for each in dict.fromkeys(ids))


def _comments(path: str, text: str) -> Iterator[tuple[int, str]]:
    name = path.rpartition("/")[2]
    if path.endswith(".py"):
        yield from _python_comments(text)
    elif name.endswith(_HAS_COMMENTS) or "ockerfile" in name or name.startswith("."):
        yield from enumerate(text.splitlines(), 1)


def _python_comments(text: str) -> Iterator[tuple[int, str]]:
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
    except (tokenize.TokenError, SyntaxError):
        return


def _covered(lines: list[str], number: int) -> int:
    """Return the line itself, or the next one that is not a comment where it is nothing else."""
    while number <= len(lines) and lines[number - 1].lstrip().startswith("#"):
        number += 1
    return number
