"""Who may use the platform: whoever has its key, where it has one, and no web page of another machine.

A page from anywhere can make a browser on this machine send requests to it. It is told apart by its `Origin`.
"""

from __future__ import annotations

import hmac
import reprlib
from urllib.parse import urlsplit

from starlette.requests import Request

from flashkit.emulator.answers import ForeignOrigin, Unauthorized
from flashkit.emulator.webhooks import is_loopback


class Admission:
    """Looks at requests before anything is done for them.

    Args:
        api_key: When set, requests without it are refused.
    """

    def __init__(self, *, api_key: str | None = None) -> None:
        self.api_key = api_key

    def check(self, request: Request) -> None:
        """Let a request pass that may use the platform.

        Raises:
            ForeignOrigin: A browser sends it for a page of another machine.
            Unauthorized: It does not carry the key.
        """
        _check_origin(request)
        self._check_key(request)

    def _check_key(self, request: Request) -> None:
        if self.api_key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.api_key.encode()):
            raise Unauthorized(
                "the Authorization header does not carry this platform's key",
                hint="send `Authorization: Bearer <key>`, or the bare key",
            )


def _check_origin(request: Request) -> None:
    """Refuse what a web page of another machine makes a browser send: anybody's page could run jobs here."""
    origin = request.headers.get("origin")
    if origin is not None and not is_loopback(urlsplit(origin).hostname or ""):
        raise ForeignOrigin(
            f"a web page of {reprlib.repr(origin)} may not use this platform",
            hint="open the page from http://localhost, or send the request from your server",
        )
