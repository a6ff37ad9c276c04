"""Who may use the platform: whoever has its key, where it has one, and no web page of another machine.

A page from anywhere can make a browser on this machine send requests to it. It is told apart by its `Origin`. A
page whose own name is made to lead here (DNS rebinding) would pass for ours; its requests are told apart by
their `Host`, which is that name.
"""

from __future__ import annotations

import hmac
import ipaddress
import reprlib
from collections.abc import Collection, Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection, Request
from starlette.types import Scope

from flashkit.emulator.answers import ForeignHost, ForeignOrigin, Unauthorized
from flashkit.emulator.webhooks import is_loopback

CONTAINER_HOST: Final = "host.docker.internal"
"""The name of this machine in containers that run on it; nobody else can make it lead anywhere."""
_EVERY_ADDRESS: Final = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
_REMEMBERED_HOSTS: Final = 1_000


class Admission:
    """Looks at requests before anything is done for them.

    Args:
        api_key: When set, requests without it are refused.
        bound_host: Address or name on which the platform listens.
        allowed_hosts: Names under which it may be reached besides those of this machine.
    """

    def __init__(
        self, *, api_key: str | None = None, bound_host: str = "127.0.0.1", allowed_hosts: Collection[str] = ()
    ) -> None:
        self.api_key = api_key
        self._bound_host = bound_host
        self._allowed_hosts = {name.casefold() for name in (CONTAINER_HOST, bound_host, *allowed_hosts)}
        self._known_hosts: set[bytes] = set()
        """`Host` headers that were found to be fine."""

    def check_host(self, scope: Scope) -> None:
        """Let a request pass that was sent to this machine by a name of its own.

        Raises:
            ForeignHost: It was sent to another name, or to an address on which nothing should be reached.
        """
        header = _host_header(scope["headers"])
        if header in self._known_hosts:
            return
        host = _host_of(header)
        if not self._is_ours(host):
            raise ForeignHost(
                f"this platform is not reached as {reprlib.repr(host)}",
                hint="use http://127.0.0.1 and the port, or allow the name where the platform is started",
            )
        if len(self._known_hosts) < _REMEMBERED_HOSTS:
            self._known_hosts.add(header)

    def _is_ours(self, host: str) -> bool:
        if host in self._allowed_hosts or is_loopback(host):
            return True
        return self._bound_host in _EVERY_ADDRESS and _is_address(host)

    def check_same_origin(self, request: Request) -> None:
        """Let a request pass that comes from a page of this platform, or from no page.

        Raises:
            ForeignOrigin: A page of another origin sent it, another port of this machine included.
        """
        origin = request.headers.get("origin")
        site = request.headers.get("sec-fetch-site", "same-origin")
        is_own = origin is None or urlsplit(origin).netloc == request.headers.get("host")
        if not is_own or site not in ("same-origin", "none"):
            raise ForeignOrigin(
                f"a web page of {reprlib.repr(origin or 'another site')} may not change this platform",
                hint="use the dashboard, or send the request from a program",
            )

    def check(self, request: HTTPConnection) -> None:
        """Let a request pass that may use the platform.

        Raises:
            ForeignOrigin: A browser sends it for a page of another machine.
            Unauthorized: It does not carry the key.
        """
        _check_origin(request)
        self._check_key(request)

    def _check_key(self, request: HTTPConnection) -> None:
        if self.api_key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.api_key.encode()):
            raise Unauthorized(
                "the Authorization header does not carry this platform's key",
                hint="send `Authorization: Bearer <key>`, or the bare key",
            )


def _check_origin(request: HTTPConnection) -> None:
    """Refuse what a web page of another machine makes a browser send: anybody's page could run jobs here."""
    origin = request.headers.get("origin")
    if origin is not None and not is_loopback(urlsplit(origin).hostname or ""):
        raise ForeignOrigin(
            f"a web page of {reprlib.repr(origin)} may not use this platform",
            hint="open the page from http://localhost, or send the request from your server",
        )


def _host_header(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return next((value for name, value in headers if name == b"host"), b"localhost")


def _host_of(header: bytes) -> str:
    """Return the name or address of a `Host` header, without the port."""
    try:
        return urlsplit("//" + header.decode("ascii")).hostname or ""
    except ValueError:  # not ASCII, or brackets that do not match
        return header.decode(errors="replace")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
