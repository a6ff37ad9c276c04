"""The page that shows the platform: static files, and the headers that keep the page to itself.

There is no build step: the browser loads the modules in `static` as they are. The page asks this platform alone
for data; its content security policy lets it load nothing from elsewhere and run no script inside the page.
What it shows comes from the routes under `/_/` (`emulator/overview.py`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE: Final = "index.html"
_STATIC: Final = Path(__file__).with_name("static")
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
    "vary": "accept",
}


def dashboard_routes() -> list[Route]:
    """Return the page's route and that of its files."""
    names = {path.relative_to(_STATIC).as_posix() for path in _STATIC.rglob("*") if path.suffix in _TYPES}

    async def show_file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in names:
            raise HTTPException(404)
        return _answer(request, name)

    return [
        Route("/dashboard", show_page, methods=["GET"]),
        Route("/dashboard/{name:path}", show_file, methods=["GET"]),
    ]


def prefers_page(request: Request) -> bool:
    """True for a request of a browser that would show what it gets to a person."""
    return "text/html" in request.headers.get("accept", "")


async def show_page(request: Request) -> Response:
    """Answer with the page."""
    return _answer(request, PAGE)


def _answer(request: Request, name: str) -> Response:
    path = _STATIC / name
    content = path.read_bytes()
    tag = f'"{hashlib.blake2s(content, digest_size=12).hexdigest()}"'
    headers = {**_HEADERS, "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=_TYPES[path.suffix])
