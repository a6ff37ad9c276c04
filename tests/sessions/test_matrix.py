"""The page about these tests names tests that exist, and each row has some."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "session-tests.md"
NAMED = re.compile(r"`(?P<file>[\w/]+\.py)`: (?P<tests>`test_\w+`(?:, `test_\w+`)*)")


def rows() -> dict[int, str]:
    return {int(row[1]): row[2] for row in re.finditer(r"^\| (\d+) \| (.*)$", PAGE.read_text(), re.MULTILINE)}


def test_every_test_that_the_page_names_exists():
    missing = []
    for found in NAMED.finditer(PAGE.read_text()):
        path = ROOT / found["file"] if "/" in found["file"] else Path(__file__).parent / found["file"]
        text = path.read_text() if path.exists() else ""
        names = re.findall(r"test_\w+", found["tests"])
        missing += [f"{found['file']}: {name}" for name in names if f"def {name}(" not in text]
    assert missing == []


def test_every_row_is_there_and_names_a_test_or_says_why_not():
    assert list(rows()) == list(range(1, 24))
    assert [number for number, row in rows().items() if not NAMED.search(row)] == [21]
