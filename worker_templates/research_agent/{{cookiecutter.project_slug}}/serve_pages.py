"""Serve a folder of Markdown and HTML files on loopback, with a search that redirects to the best page.

    python serve_pages.py pages --port 8808

`/search?q=words` answers with a redirect to the page that fits the words best, so the agent's retrieval
goes through real HTTP without an internet connection. It stands in for a web search service.
"""

import argparse
import math
import sys
from collections import Counter
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from steps.documents import read_file
from steps.planning import content_words

HOST = "127.0.0.1"


class PageSearch:
    """Ranks the pages of a folder for a few words: rare words count more, long pages count less."""

    def __init__(self, folder: Path) -> None:
        files = sorted(path for path in folder.rglob("*") if path.suffix in (".md", ".html", ".txt"))
        self._words = {path.relative_to(folder).as_posix(): self._count(path) for path in files}
        self._spread = Counter(word for words in self._words.values() for word in words)

    def best(self, query: str) -> str | None:
        """Return the path of the page that fits best, or None when no page has any of the words."""
        words = set(content_words(query))
        scores = {path: self._score(words, counts) for path, counts in self._words.items()}
        path = max(scores, key=scores.__getitem__, default=None)
        return path if path is not None and scores[path] > 0 else None

    def _score(self, words: set[str], counts: Counter[str]) -> float:
        length = math.sqrt(counts.total() or 1)
        score: float = (
            sum(
                (1 + math.log(counts[word])) * math.log(1 + len(self._words) / self._spread[word])
                for word in words
                if counts[word]
            )
            / length**0.5
        )
        return score

    @staticmethod
    def _count(path: Path) -> Counter[str]:
        document = read_file(path)
        return Counter(content_words(f"{document.title} {document.title} {document.text}"))


class PageHandler(SimpleHTTPRequestHandler):
    """Serves files as they are, and `/search?q=` as a redirect."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".md": "text/markdown; charset=utf-8"}

    def __init__(self, *args: object, search: PageSearch, quiet: bool, **kwargs: object) -> None:
        self._search = search
        self._quiet = quiet
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]  # passed through unseen

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/search":
            self._redirect(parse_qs(url.query).get("q", [""])[0])
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        if not self._quiet:
            super().log_message(format, *args)

    def _redirect(self, query: str) -> None:
        path = self._search.best(query)
        if path is None:
            self.send_error(HTTPStatus.NOT_FOUND, "No page has any of these words")
            return
        self.send_response(HTTPStatus.FOUND)
        self.send_header("Location", f"/{quote(path)}")
        self.send_header("Content-Length", "0")
        self.end_headers()


def make_server(folder: Path, *, port: int = 0, quiet: bool = False) -> ThreadingHTTPServer:
    """Return a server for a folder, bound to loopback; port 0 takes any free one."""
    handler = partial(PageHandler, directory=str(folder), search=PageSearch(folder), quiet=quiet)
    return ThreadingHTTPServer((HOST, port), handler)


def main() -> int:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="Serve a folder of Markdown and HTML files on loopback.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent / "pages")
    parser.add_argument("--port", type=int, default=8808, help="0 takes any free port (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="do not log requests")
    options = parser.parse_args()
    if not options.folder.is_dir():
        print(f"{options.folder} is not a folder", file=sys.stderr)
        return 2
    try:
        server = make_server(options.folder, port=options.port, quiet=options.quiet)
    except OSError as exc:
        print(f"port {options.port} cannot be used ({exc.strerror}): choose another with --port", file=sys.stderr)
        return 1
    with server:
        print(f"serving {options.folder} at http://{HOST}:{server.server_port}/", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
