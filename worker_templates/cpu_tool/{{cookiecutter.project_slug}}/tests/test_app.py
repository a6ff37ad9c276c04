"""The tool as a function, and as jobs on the local platform with real workers."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from flashkit import JobFailed

from app import fetch, read_html

PAGE = """<html><head><title>Slow  tools</title><style>p {}</style></head>
<body><h1>When a tool is slow</h1><p>It fails <b>alone</b>.</p><script>var x = "</p>";</script></body></html>"""
NAME = fetch.spec.name


class _Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/page" else 404)
        self.end_headers()
        self.wfile.write(PAGE.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """A web site with one page, on loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_page_becomes_text():
    assert read_html(PAGE) == ("Slow tools", "When a tool is slow\nIt fails alone.")


async def test_calling_the_endpoint_just_calls_the_function(site: str):
    assert (await fetch(f"{site}/page")).title == "Slow tools"


def test_a_job_returns_the_page(endpoint, site: str):
    assert endpoint(NAME).call({"url": f"{site}/page"}) == {
        "url": f"{site}/page",
        "title": "Slow tools",
        "text": "When a tool is slow\nIt fails alone.",
    }


@pytest.mark.parametrize(("url", "words"), [("ftp://somewhere", "not a web address"), ("{site}/nothing", "404")])
def test_a_page_that_cannot_be_fetched_fails_with_a_reason(endpoint, site: str, url: str, words: str):
    with pytest.raises(JobFailed, match=words):
        endpoint(NAME).call({"url": url.format(site=site)})


def test_a_job_survives_the_death_of_its_worker(endpoint, faults, site: str):
    faults.set(f"{NAME}:kill=0.3", seed=2)
    titles = [endpoint(NAME).call({"url": f"{site}/page"})["title"] for _ in range(5)]
    assert titles == ["Slow tools"] * 5
