"""Ranges of files over HTTP, by many threads at once.

The hub's own client hands every chunk through Python several times: 135 MB/s at a full core on the machine where
this was measured, where the sockets of the standard library gave 600 MB/s at an eighth of the work. So the hub's
library says what there is and who may have it, and the bytes come through here: `readinto` into one buffer for each
thread, connections kept open, redirects followed once for each file.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import ssl
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from flashkit.worker.weights.sources import TransientFailure

TIMEOUT_SECONDS: Final = 30.0
_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_PASSING: Final = (408, 425, 429)


class Refused(Exception):
    """The server answered a status that asking again will not change."""

    def __init__(self, status: int, url: str) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.url = url


class RangeReader:
    """Reads ranges of files from one server, and from those that it redirects to.

    Args:
        headers: Sent to that server; the authorization goes to no other one.
        timeout_seconds: Longest silence.
    """

    def __init__(self, headers: Mapping[str, str], *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._headers = {**headers, "Accept-Encoding": "identity"}  # compressed text could not be cut into ranges
        self._timeout = timeout_seconds
        self._own = threading.local()  # connections cannot be shared between threads
        self._locations: dict[str, str] = {}
        self._all: list[http.client.HTTPConnection] = []

    def close(self) -> None:
        """Close the connections of all threads."""
        for connection in self._all:
            connection.close()

    @contextlib.contextmanager
    def open(self, url: str, start: int, stop: int) -> Iterator[_RangeBody]:
        """Return the bytes of a file from `start` up to and without `stop`.

        Raises:
            TransientFailure: The server is away, overloaded or hung up.
            Refused: It answered another status.
        """
        try:
            connection, answer = self._follow(url, start, stop)
        except (OSError, http.client.HTTPException) as exc:
            self._forget()
            raise TransientFailure(_in_words(exc)) from exc
        body = _RangeBody(answer, stop - start)
        try:
            if answer.status == http.client.OK and start:
                body.skip(start)  # a server without ranges sends everything
            yield body
        finally:
            if not body.is_read:
                connection.close()  # what is left would be taken for the next answer

    def _follow(self, url: str, start: int, stop: int) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        at = self._locations.get(url, url)
        for _ in range(_MAX_REDIRECTS):
            connection, answer = self._ask(at, url, start, stop)
            if answer.status in (http.client.OK, http.client.PARTIAL_CONTENT):
                self._locations[url] = at
                return connection, answer
            target = answer.getheader("Location")
            answer.read()
            if answer.status in _REDIRECTS and target:
                at = urljoin(at, target)
                if urlsplit(at).scheme not in ("http", "https"):
                    raise TransientFailure(f"a redirect to {at}")
                continue
            if at != url:  # a signed address that has expired
                self._locations.pop(url, None)
                raise TransientFailure(f"HTTP {answer.status} from {urlsplit(at).netloc}")
            if answer.status in _PASSING or answer.status >= http.client.INTERNAL_SERVER_ERROR:
                raise TransientFailure(f"HTTP {answer.status}")
            raise Refused(answer.status, url)
        raise TransientFailure(f"more than {_MAX_REDIRECTS} redirects")

    def _ask(
        self, at: str, url: str, start: int, stop: int
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        parts, own = urlsplit(at), urlsplit(url)
        connection, is_proxied = self._connect(parts)
        headers = {**self._headers, "Range": f"bytes={start}-{stop - 1}"}
        if (parts.scheme, parts.netloc) != (own.scheme, own.netloc):
            headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
        target = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        connection.request("GET", f"{parts.scheme}://{parts.netloc}{target}" if is_proxied else target, headers=headers)
        return connection, connection.getresponse()

    def _connect(self, parts: SplitResult) -> tuple[http.client.HTTPConnection, bool]:
        """Return this thread's connection to a server, and whether whole addresses are sent on it."""
        connections: dict[tuple[str, str], tuple[http.client.HTTPConnection, bool]] = self._own.__dict__.setdefault(
            "connections", {}
        )
        key = (parts.scheme, parts.netloc)
        if key not in connections:
            connections[key] = _make_connection(parts, self._timeout)
            self._all.append(connections[key][0])
        return connections[key]

    def _forget(self) -> None:
        for connection, _ in self._own.__dict__.pop("connections", {}).values():
            connection.close()


class _RangeBody:
    """The bytes of one answer, no more than were asked for."""

    def __init__(self, answer: http.client.HTTPResponse, length: int) -> None:
        self._answer = answer
        self._left = length

    @property
    def is_read(self) -> bool:
        """True when the connection can take another request."""
        return self._answer.isclosed()

    def readinto(self, buffer: memoryview, /) -> int:
        """Put bytes into the buffer and return how many."""
        try:
            count = self._answer.readinto(buffer[: self._left])
        except (OSError, http.client.HTTPException) as exc:
            raise TransientFailure(_in_words(exc)) from exc
        self._left -= count
        return count

    def skip(self, count: int) -> None:
        """Pass over bytes."""
        buffer = memoryview(bytearray(1 << 20))
        try:
            while count:
                got = self._answer.readinto(buffer[:count])
                if not got:
                    raise TransientFailure("the answer ended early")
                count -= got
        except (OSError, http.client.HTTPException) as exc:
            raise TransientFailure(_in_words(exc)) from exc


def _make_connection(parts: SplitResult, timeout: float) -> tuple[http.client.HTTPConnection, bool]:
    host, port = parts.hostname or "", parts.port
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(host):
        if parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=_tls()), False
        return http.client.HTTPConnection(host, port, timeout=timeout), False
    via = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme == "http":
        return http.client.HTTPConnection(via.hostname or "", via.port, timeout=timeout), True
    tunnel = http.client.HTTPSConnection(via.hostname or "", via.port, timeout=timeout, context=_tls())
    tunnel.set_tunnel(host, port or 443, headers=_proxy_login(via))
    return tunnel, False


def _proxy_login(via: SplitResult) -> dict[str, str]:
    if not via.username:
        return {}
    login = f"{unquote(via.username)}:{unquote(via.password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(login).decode()}"}


def _tls() -> ssl.SSLContext:
    """Return the certificates that are trusted: SSL_CERT_FILE, or certifi's, as the hub's own client has them."""
    if os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR"):
        return ssl.create_default_context()
    import certifi

    return ssl.create_default_context(cafile=certifi.where())


def _in_words(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
