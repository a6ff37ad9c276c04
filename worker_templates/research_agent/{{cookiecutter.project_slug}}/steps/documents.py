"""HTML and Markdown to plain text, and text to passages.

Both formats go through one path: Markdown is rendered to HTML first. Code blocks are left out, because
the small language model that reads the passages cannot do anything with them.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from selectolax.lexbor import LexborHTMLParser

from steps.schema import Passage

MAX_PASSAGE_WORDS = 90
"""About 120 tokens: three passages and a question stay well below 1,000 tokens."""
MIN_PASSAGE_WORDS = 6

_DROPPED = ["script", "style", "noscript", "template", "svg", "nav", "header", "footer", "aside", "form", "pre"]
_HEADINGS = "h1, h2, h3, h4, h5, h6"
_BLOCKS = "p, li, dt, dd, div, section, article, blockquote, figure, figcaption, table, tr, ul, ol, hr"
_EDGE = "\x1e"
"""Marks the edges of blocks; the record separator does not occur in text."""
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_DIRECTIVE = re.compile(r"^(:::|!!!|\?\?\?|--8<--).*$", re.MULTILINE)
"""Lines that a documentation generator reads and a person never sees."""
_ABBREVIATION = re.compile(r"\b(e\.g|i\.e|etc|vs|approx|cf|Dr|Mr|Ms|No|Fig)\.$", re.IGNORECASE)
_SENTENCE_END = re.compile(r"""[.!?]["')\]]*(?=\s+["'(\[]?[A-Z0-9])""")


class Document(NamedTuple):
    """A document as text: headings are lines that start with `#`, blocks are separated by blank lines."""

    title: str
    text: str


def read_html(html: str) -> Document:
    """Return the readable text of an HTML page, without navigation, scripts and code blocks."""
    tree = LexborHTMLParser(html)
    title_node = tree.css_first("title") or tree.css_first("h1")
    title = _squeeze(title_node.text()) if title_node else ""
    tree.strip_tags([*_DROPPED, "head"], recursive=True)
    root = tree.css_first("main") or tree.css_first("article") or tree.body
    if root is None:
        return Document(title, "")
    for node in root.css(_HEADINGS):
        node.insert_before(f"{_EDGE}# ")
        node.insert_after(_EDGE)
    for node in root.css(_BLOCKS):
        node.insert_before(_EDGE)
        node.insert_after(_EDGE)
    for node in root.css("td, th, br"):
        node.insert_after(" ")
    blocks = (_squeeze(block) for block in root.text().split(_EDGE))
    return Document(title, "\n\n".join(block for block in blocks if block not in ("", "#")))


def read_markdown(markdown: str) -> Document:
    """Return the readable text of a Markdown file; its title is its first heading."""
    source = _DIRECTIVE.sub("", _FRONT_MATTER.sub("", markdown))
    html = MarkdownIt("commonmark").enable("table").render(source)
    return read_html(f"<body><main>{html}</main></body>")


def read_file(path: Path) -> Document:
    """Return the text of a `.md`, `.html` or `.txt` file."""
    content = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix in (".html", ".htm"):
        return read_html(content)
    return read_markdown(content)


def load_folder(folder: Path) -> list[Passage]:
    """Return the passages of every Markdown, HTML and text file below a folder.

    Raises:
        FileNotFoundError: The folder does not exist or has no such file.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".md", ".html", ".htm", ".txt"))
    if not paths:
        raise FileNotFoundError(
            f"there is no .md, .html or .txt file below {str(folder)!r}: set KNOWLEDGE_DIR to a folder with documents"
        )
    return [
        passage
        for path in paths
        for passage in split_passages(read_file(path), source=path.relative_to(folder).as_posix())
    ]


def split_passages(document: Document, *, source: str) -> list[Passage]:
    """Return a document's text in passages that do not cross headings."""
    passages = []
    for heading, blocks in _sections(document.text):
        title = _join_titles(document.title, heading)
        for text in _pack(blocks):
            if len(text.split()) >= MIN_PASSAGE_WORDS:
                passages.append(Passage(source=source, title=title or source, text=text))
    return passages


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text. A line end is a sentence's end too."""
    return [sentence for line in text.splitlines() for sentence in _line_sentences(line.strip()) if sentence]


def _line_sentences(line: str) -> Iterator[str]:
    start = 0
    for match in _SENTENCE_END.finditer(line):
        if not _ABBREVIATION.search(line[start : match.start() + 1]):
            yield line[start : match.end()].strip()
            start = match.end()
    yield line[start:].strip()


def _sections(text: str) -> Iterator[tuple[str, list[str]]]:
    heading, blocks = "", list[str]()
    for block in text.split("\n\n"):
        if not block.startswith("# "):
            blocks.append(block)
            continue
        if blocks:
            yield heading, blocks
        heading, blocks = block.removeprefix("# "), []
    if blocks:
        yield heading, blocks


def _pack(blocks: Iterable[str]) -> Iterator[str]:
    """Join sentences until a passage is full."""
    taken: list[str] = []
    words = 0
    for block in blocks:
        for sentence in split_sentences(block):
            count = len(sentence.split())
            if taken and words + count > MAX_PASSAGE_WORDS:
                yield "\n".join(taken)
                taken, words = [], 0
            taken.append(sentence)
            words += count
    if taken:
        yield "\n".join(taken)


def _join_titles(title: str, heading: str) -> str:
    return f"{title}: {heading}" if title and heading and heading != title else title or heading


def _squeeze(text: str) -> str:
    return " ".join(text.split())
