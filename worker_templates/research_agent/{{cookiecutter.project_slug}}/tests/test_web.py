import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from steps.web import PageError, fetch_page


@pytest.fixture
async def awkward_url() -> AsyncIterator[str]:
    """A server that is slow, huge, circular, binary or empty, depending on the path."""

    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(1)
        return web.Response(text="late")

    async def loop(request: web.Request) -> web.Response:
        raise web.HTTPFound("/loop")

    async def mailto(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "ftp://127.0.0.1/file"})

    async def huge(request: web.Request) -> web.Response:
        return web.Response(text="<p>" + "word " * 100_000, content_type="text/html")

    async def binary(request: web.Request) -> web.Response:
        return web.Response(body=b"\x89PNG", content_type="image/png")

    async def empty(request: web.Request) -> web.Response:
        return web.Response(text="<script>build()</script>", content_type="text/html")

    async def latin(request: web.Request) -> web.Response:
        return web.Response(
            body="<p>Café</p>".encode("latin-1"), headers={"Content-Type": "text/html; charset=latin-1"}
        )

    app = web.Application()
    for handler in (slow, loop, mailto, huge, binary, empty, latin):
        app.router.add_get(f"/{handler.__name__}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    await runner.cleanup()


async def test_an_html_page_comes_back_as_text(pages_url: str):
    page = await fetch_page(f"{pages_url}/grounded-answers.html")

    assert page.title == "Grounded answers"
    assert "All pages" not in page.text
    assert "A grounded answer states only what its sources state." in page.text


async def test_a_search_leads_to_the_page_that_fits_best(pages_url: str):
    page = await fetch_page(f"{pages_url}/search?q=minimum+and+maximum+number+of+workers")

    assert page.url == f"{pages_url}/worker-bounds.md"
    assert page.title == "Choosing worker bounds"


async def test_a_declared_charset_is_respected(awkward_url: str):
    assert (await fetch_page(f"{awkward_url}/latin")).text == "Café"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/slow", "no complete answer within 0.3 seconds"),
        ("/loop", "more than 5 redirects"),
        ("/mailto", "neither http nor https"),
        ("/huge", "larger than 10,000 bytes"),
        ("/binary", "is image/png"),
        ("/empty", "no readable text"),
        ("/nothing-here", "answered 404"),
    ],
)
async def test_a_bad_page_fails_with_its_url_and_the_reason(awkward_url: str, path: str, reason: str):
    with pytest.raises(PageError, match=reason) as caught:
        await fetch_page(awkward_url + path, timeout_seconds=0.3, max_bytes=10_000)

    assert path in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://example.org/x", "file:///etc/passwd", "example.org", "http://", "http://[oops"])
async def test_only_http_urls_are_fetched(url: str):
    with pytest.raises(PageError):
        await fetch_page(url)


async def test_a_server_that_is_not_there_is_named():
    with pytest.raises(PageError, match=r"127\.0\.0\.1:9/: cannot be fetched"):
        await fetch_page("http://127.0.0.1:9/")


async def test_a_search_without_a_match_is_a_missing_page(pages_url: str):
    with pytest.raises(PageError, match="404 No page has any of these words"):
        await fetch_page(f"{pages_url}/search?q=xylophone")
