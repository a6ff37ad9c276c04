"""{{ cookiecutter.project_name }}: a stateless tool on a CPU worker.

Run it with `flashkit dev`. An agent calls it with `session.call(fetch, url=...)`, anybody else over HTTP.
"""

import asyncio
from dataclasses import dataclass
from html.parser import HTMLParser

import aiohttp
from flashkit import InputError, cpu_endpoint

LARGEST_PAGE_BYTES = 5_000_000
_NOT_TEXT = {"script", "style", "template", "noscript", "svg"}
_BLOCKS = {"p", "div", "section", "article", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "br", "pre", "title"}


@dataclass
class Page:
    """A web page as text."""

    url: str
    """Where the page was in the end, after redirects."""
    title: str
    text: str
    """One line a paragraph."""


@cpu_endpoint(
    name="{{ cookiecutter.project_slug.replace('_', '-') }}",
    cpu="{{ cookiecutter.cpu }}",
    workers=(1, 5),
    idle_timeout=60,
    execution_timeout_ms=30_000,
    concurrency=16,  # it waits for the network most of the time
)
async def fetch(url: str, timeout: float = 20.0) -> Page:
    """Return a web page as text; a page that hangs fails alone, after `timeout` seconds."""
    if not url.startswith(("http://", "https://")):
        raise InputError(f"url={url!r} is not a web address", hint="it begins with http:// or https://")
    limits = aiohttp.ClientTimeout(total=timeout)
    async with aiohttp.ClientSession(timeout=limits) as session, session.get(url) as response:
        response.raise_for_status()
        body = await response.content.read(LARGEST_PAGE_BYTES)
        title, text = await asyncio.to_thread(read_html, body.decode(response.charset or "utf-8", errors="replace"))
        return Page(url=str(response.url), title=title, text=text)


def read_html(html: str) -> tuple[str, str]:
    """Return the title and the text of an HTML page."""
    reader = _Reader()
    reader.feed(html)
    lines = (" ".join(line.split()) for line in "".join(reader.text).splitlines())
    return " ".join("".join(reader.title).split()), "\n".join(line for line in lines if line)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.title: list[str] = []
        self.text: list[str] = []
        self._inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _NOT_TEXT or tag == "title":
            self._inside.append(tag)
        if tag in _BLOCKS:
            self.text.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()
        if tag in _BLOCKS:
            self.text.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.text.append(data)
        elif self._inside[-1] == "title":
            self.title.append(data)
