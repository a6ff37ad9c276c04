"""The documentation as a test sees it: pages, their code blocks, and the invisible comments that steer them.

A comment on its own line right above a fenced block says what happens to the block besides being read:

    <!-- skip: reason -->   a Python block that is not run, and why
    <!-- dev -->            the shell block's `flashkit dev` is started for the rest of the page, on a free port
    <!-- run -->            the shell block is run and must succeed
    <!-- fails -->          the shell block is run and must end with an error
    <!-- background -->     the shell block is started; its output is waited for where `output` follows
    <!-- kill -->           the process whose number the page's worker printed is killed
    <!-- output -->         the block is what the previous one printed; `...` stands for anything

Python blocks without a comment are run, all blocks of a page in one namespace; a block with a title is a file
first: it is written into the page's folder, and imported unless it starts a worker.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sybil import Document, Example, Region
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer
from sybil.typing import Evaluator

ROOT = Path(__file__).parent.parent.parent
MARKS = {"skip", "dev", "run", "fails", "background", "kill", "output"}
_INFO = re.compile(r"(?P<language>\w*)(?P<options>[^\n]*)$\n", re.MULTILINE)
_COMMENT_ABOVE = re.compile(r"<!-- (?P<mark>\w+)(?:: (?P<reason>[^\n]+?))? -->\s*\Z")
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    language: str
    source: str
    title: str | None = None
    mark: str | None = None
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass
class MarkdownParser:
    """Finds the blocks of a page for sybil."""

    evaluate: Evaluator
    lexer: RawFencedCodeBlockLexer = field(default_factory=lambda: RawFencedCodeBlockLexer(_INFO))

    def __call__(self, document: Document) -> Iterator[Region]:
        for region in self.lexer(document):
            above = _COMMENT_ABOVE.search(document.text[: region.start])
            title = _TITLE.search(region.lexemes["options"])
            block = Block(
                page=Path(document.path),
                line=document.text.count("\n", 0, region.start) + 1,
                language=region.lexemes["language"],
                source=str(region.lexemes["source"]),
                title=title[1] if title else None,
                mark=above["mark"] if above else None,
                reason=above["reason"] if above else None,
            )
            yield Region(region.start, region.end, block, self.evaluate)


def markdown_pages() -> list[Path]:
    """Return every page that people read."""
    top = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    return [*top, *sorted((ROOT / "docs").rglob("*.md"))]


def read_examples(page: Path, evaluate: Evaluator) -> list[Example]:
    """Return the page's blocks as sybil's examples, to be evaluated in order."""
    return list(Document.parse(str(page), MarkdownParser(evaluate)).examples())


def read_blocks(page: Path) -> list[Block]:
    """Return the page's blocks."""
    return [example.parsed for example in read_examples(page, _nothing)]


def _nothing(example: Example) -> None:
    del example
