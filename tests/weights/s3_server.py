"""S3 for the tests: moto's server as a process of its own, and a proxy before it with the quirks of Runpod's S3.

`python -m tests.weights.s3_server` prints the server's address and serves until its input ends.
"""

from __future__ import annotations

import http.client
import http.server
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

PAGE = 4
"""Objects on a page of a listing."""


@dataclass
class Quirk:
    """What happens to the next requests that match: `502`, `cut` after so many bytes, `repeat` of the page before."""

    method: str
    path: str
    kind: str
    times: int = 1
    value: int = 0


class S3Server:
    """The server, and the proxy through which tests reach it."""

    def __init__(self) -> None:
        self.quirks: list[Quirk] = []
        self.requests: list[tuple[str, str, int]] = []
        self._page = b""

    def __enter__(self) -> S3Server:
        self._moto = subprocess.Popen(
            [sys.executable, "-m", "tests.weights.s3_server"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            cwd=Path(__file__).parents[2], env={**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE)},
        )  # fmt: skip
        self.real = self._moto.stdout.readline().strip()
        self._proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _proxy_of(self))
        self._proxy.daemon_threads = True
        threading.Thread(target=self._proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._proxy.shutdown()
        self._proxy.server_close()
        self._moto.stdin.close()
        self._moto.stdout.close()
        self._moto.wait(timeout=20)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._proxy.server_port}"

    def reset(self) -> None:
        self.quirks.clear()
        self.requests.clear()

    def fail(self, method: str, path: str, kind: str, *, times: int = 1, value: int = 0) -> None:
        self.quirks.append(Quirk(method, path, kind, times, value))

    def take_quirk(self, method: str, path: str) -> Quirk | None:
        for quirk in self.quirks:
            if quirk.times > 0 and quirk.method == method and re.search(quirk.path, path):
                quirk.times -= 1
                return quirk
        return None

    def asked(self, method: str, path: str) -> list[tuple[str, str, int]]:
        return [each for each in self.requests if each[0] == method and re.search(path, each[1])]


def _proxy_of(server: S3Server) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            server.requests.append((self.command, self.path, len(body)))
            quirk = server.take_quirk(self.command, self.path)
            if quirk and quirk.kind == "502":
                self._send(502, {}, b"<html>Bad Gateway</html>")
                return
            if quirk and quirk.kind == "repeat" and server._page:
                self._send(200, {"Content-Type": "application/xml"}, server._page)
                return
            connection = http.client.HTTPConnection(urlsplit(server.real).netloc, timeout=30)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            if "list-type" in self.path:
                server._page = data
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in ("connection", "content-length")}
            length = answer.getheader("content-length") if self.command == "HEAD" else str(len(data))
            cut = quirk.value if quirk and quirk.kind == "cut" else None
            self._send(answer.status, headers, data, length=length, cut=cut)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on  # noqa: N815 - http.server's names

        def _send(self, status, headers, body, *, length=None, cut=None) -> None:
            self.send_response_only(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", length or str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body if cut is None else body[:cut])
            if cut is not None:
                self.close_connection = True

    return Handler


def main() -> None:
    """Serve until the input ends."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
