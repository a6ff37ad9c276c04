"""Fetch one web page, politely and with limits, and return its text.

Private and loopback addresses are fetched too, because the demo's pages are served there. An agent
whose URLs come from strangers needs a proxy or a firewall between this worker and the internal network.
"""

import asyncio
import functools
import ipaddress
import logging

import aiohttp
from yarl import URL

from steps.documents import read_html, read_markdown
from steps.schema import Page

MAX_BYTES = 2_000_000
MAX_REDIRECTS = 5
TIMEOUT_SECONDS = 25.0
"""Below the endpoint's 30 seconds, so that a slow page ends in this module's error and not in the platform's."""
USER_AGENT = "flashkit-research-agent/0.1"

_HTML_TYPES = ("text/html", "application/xhtml+xml")
_TEXT_TYPES = ("text/markdown", "text/x-markdown", "text/plain")

log = logging.getLogger(__name__)


class PageError(Exception):
    """A page could not be fetched or read; the message names the URL and the reason."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{url}: {reason}")


async def fetch_page(url: str, *, timeout_seconds: float = TIMEOUT_SECONDS, max_bytes: int = MAX_BYTES) -> Page:
    """Return the text of an HTML, Markdown or plain text page.

    Raises:
        PageError: The URL is not http(s), the server refuses or is slow, or the page is too large or not text.
    """
    _note_private_host(_checked_url(url).host or "")
    limits = aiohttp.ClientTimeout(total=timeout_seconds)
    try:
        async with (
            aiohttp.ClientSession(timeout=limits, headers={"User-Agent": USER_AGENT}) as client,
            client.get(url, max_redirects=MAX_REDIRECTS) as response,
        ):
            return await _read_page(response, url, max_bytes)
    except TimeoutError:
        raise PageError(url, f"no complete answer within {timeout_seconds:g} seconds") from None
    except aiohttp.TooManyRedirects:
        raise PageError(url, f"more than {MAX_REDIRECTS} redirects") from None
    except aiohttp.NonHttpUrlRedirectClientError as exc:
        raise PageError(url, f"redirects to {exc}, which is neither http nor https") from None
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        raise PageError(url, f"cannot be fetched ({exc or type(exc).__name__})") from exc


async def _read_page(response: aiohttp.ClientResponse, url: str, max_bytes: int) -> Page:
    if not response.ok:
        raise PageError(url, f"the server answered {response.status} {response.reason}")
    kind = response.content_type
    if kind not in (*_HTML_TYPES, *_TEXT_TYPES):
        raise PageError(url, f"is {kind}; only HTML, Markdown and plain text can be read")
    content = _decode(await _read_body(response, url, max_bytes), response.charset)
    read = read_html if kind in _HTML_TYPES else read_markdown
    document = await asyncio.to_thread(read, content)
    if not document.text:
        raise PageError(url, "has no readable text (pages that are built by scripts in the browser look like this)")
    return Page(url=str(response.url), title=document.title or str(response.url), text=document.text)


async def _read_body(response: aiohttp.ClientResponse, url: str, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(65_536):
        body += chunk
        if len(body) > max_bytes:
            raise PageError(url, f"is larger than {max_bytes:,} bytes")
    return bytes(body)


def _decode(body: bytes, charset: str | None) -> str:
    try:
        return body.decode(charset or "utf-8", errors="replace")
    except LookupError:
        return body.decode("utf-8", errors="replace")


def _checked_url(url: str) -> URL:
    try:
        parsed = URL(url)
    except ValueError as exc:
        raise PageError(url, f"is not a URL ({exc})") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise PageError(url, "is not an http or https URL; write it like https://example.org/page")
    return parsed


@functools.lru_cache(maxsize=1024)
def _note_private_host(host: str) -> None:
    """Log once that an address is not on the public internet."""
    try:
        private = ipaddress.ip_address(host).is_private
    except ValueError:
        private = host == "localhost" or host.endswith((".local", ".internal"))
    if private:
        log.info("fetching from the private address %s", host)
