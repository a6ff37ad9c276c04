"""A Hugging Face hub of the tests: what `huggingface_hub` asks of the real one, on loopback, with faults on demand.

It speaks the model's info and tree, `resolve` with the headers that carry commit, size and hash, redirects of large
files to another host, ranges, gated and private repositories, and errors as the hub marks them. Run as a program it
serves one repository of random bytes, for measurements.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LFS_FROM_BYTES = 10_000


@dataclass
class Repo:
    """One repository at one commit, and what its branches and tags mean."""

    files: dict[str, bytes | Path]
    commit: str = "c0ffee" + "0" * 34
    refs: dict[str, str] = field(default_factory=dict)
    is_gated: bool = False
    is_private: bool = False
    token: str = "hf_good"

    def size(self, path: str) -> int:
        content = self.files[path]
        return content.stat().st_size if isinstance(content, Path) else len(content)

    def hashes(self, path: str) -> tuple[str, str]:
        content = self.files[path]
        data = content.read_bytes() if isinstance(content, Path) else content
        return hashlib.sha256(data).hexdigest(), hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Fault:
    """What happens to the next requests whose path matches.

    `status` (the value), `drop` (no answer), `cut` (after so many bytes), `reset` (the same, with a TCP reset),
    `slow` (seconds for each 4 KiB), `corrupt`, `no-ranges`, `loop` (a redirect to itself), `away` (one that leaves
    HTTP); several with spaces between them.
    """

    path: str
    kind: str
    times: int = 1
    value: float = 0


class HubServer:
    """The hub, and the other host that large files come from."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self._hashes: dict[tuple[str, str], tuple[str, str]] = {}
        self._servers: list[http.server.ThreadingHTTPServer] = []

    def __enter__(self) -> HubServer:
        for _ in range(2):
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
            self._servers.append(server)
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def cdn(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def add(self, name: str, files: dict[str, bytes | Path], **options: object) -> Repo:
        repo = Repo(files, **options)
        repo.refs.setdefault("main", repo.commit)
        self.repos[name] = repo
        for path in files:
            self._hashes[name, path] = repo.hashes(path)
        return repo

    def hashes(self, name: str, path: str) -> tuple[str, str]:
        return self._hashes[name, path]

    def fail(self, path: str, kind: str, *, times: int = 1, value: float = 0) -> None:
        self.faults.append(Fault(path, kind, times, value))

    def take_fault(self, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None

    def asked(self, pattern: str, method: str = "GET") -> list[tuple[str, str, dict[str, str]]]:
        return [each for each in self.requests if each[0] == method and re.search(pattern, each[1])]

    @contextmanager
    def down(self) -> Iterator[None]:
        """Answer nobody for as long as the block lasts."""
        self.fail(".", "drop", times=10**6)
        yield
        self.faults.clear()


def _handler_of(hub: HubServer) -> type[http.server.BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"hub": hub})


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ValueError):  # clients go away, and resets close what is then flushed
            self.close_connection = True

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.requests.append((self.command, self.path, dict(self.headers)))
        self.fault = self.hub.take_fault(path)
        if self.fault and "drop" in self.fault.kind:
            self.close_connection = True
            return
        if self.fault and "status" in self.fault.kind:
            self._send(int(self.fault.value), b"broken")
            return
        if self.fault and "loop" in self.fault.kind:
            self._send(302, b"", {"Location": self.path})
            return
        if self.fault and "away" in self.fault.kind:
            self._send(302, b"", {"Location": "ftp://127.0.0.1/file"})
            return
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path):
            self._info(match[1], match[2], match[3] or "main", parse_qs(url.query))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            self._file(match[1], match[2], {})
        else:
            self._send(404, b"no such page")

    def _repo(self, name: str, revision: str, *, is_file: bool = False) -> tuple[Repo, str] | None:
        repo = self.hub.repos.get(name)
        authorized = repo is not None and self.headers.get("authorization") == f"Bearer {repo.token}"
        if repo is None or (repo.is_private and not authorized):
            self._send(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return None
        if repo.is_gated and is_file and not authorized:
            status = 403 if self.headers.get("authorization") else 401
            self._send(status, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to {name} is restricted"})
            return None
        commit = repo.refs.get(revision, revision)
        if commit != repo.commit:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"no {revision}"})
            return None
        return repo, commit

    def _info(self, name: str, what: str | None, revision: str, query: dict[str, list[str]]) -> None:
        found = self._repo(name, revision)
        if found is None:
            return
        repo, commit = found
        if what == "tree":
            self._send_json([self._tree_entry(name, repo, path) for path in repo.files])
            return
        siblings = [{"rfilename": path} for path in repo.files]
        if "blobs" in query:
            siblings = [self._sibling(name, repo, path) for path in repo.files]
        self._send_json({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "private": False})

    def _sibling(self, name: str, repo: Repo, path: str) -> dict[str, object]:
        sha256, blob = self.hub.hashes(name, path)
        size = repo.size(path)
        entry: dict[str, object] = {"rfilename": path, "size": size, "blobId": blob}
        if size >= LFS_FROM_BYTES:
            entry["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 130}
        return entry

    def _tree_entry(self, name: str, repo: Repo, path: str) -> dict[str, object]:
        sha256, blob = self.hub.hashes(name, path)
        size = repo.size(path)
        entry: dict[str, object] = {"type": "file", "path": path, "size": size, "oid": blob}
        if size >= LFS_FROM_BYTES:
            entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": 130}
        return entry

    def _resolve(self, name: str, revision: str, path: str) -> None:
        found = self._repo(name, revision, is_file=True)
        if found is None:
            return
        repo, commit = found
        if path not in repo.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": f"no {path}"})
            return
        sha256, blob = self.hub.hashes(name, path)
        size = repo.size(path)
        is_large = size >= LFS_FROM_BYTES
        headers = {"X-Repo-Commit": commit, "ETag": f'"{sha256 if is_large else blob}"'}
        if is_large:
            headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(size)}
            self._send(302, b"", headers | {"Location": f"{self.hub.cdn}/cdn/{name}/{path}?signature=x"})
            return
        self._file(name, path, headers)

    def _file(self, name: str, path: str, headers: dict[str, str]) -> None:
        repo = self.hub.repos[name]
        size = repo.size(path)
        start, stop, status = 0, size, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if asked and not (self.fault and "no-ranges" in self.fault.kind):
            start, stop, status = int(asked[1]), min(size, int(asked[2] or size - 1) + 1), 206
            headers = headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        self.send_response(status)
        for key, value in (headers | {"Accept-Ranges": "bytes", "Content-Length": str(stop - start)}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self._bytes(repo.files[path], start, stop)

    def _bytes(self, content: bytes | Path, start: int, stop: int) -> None:
        fault = self.fault
        if fault and ("cut" in fault.kind or "reset" in fault.kind):
            stop = min(stop, start + int(fault.value))
            self.close_connection = True
        if isinstance(content, Path):
            with content.open("rb") as file:
                while start < stop:
                    start += os.sendfile(self.connection.fileno(), file.fileno(), start, stop - start)
            return
        data = content[start:stop]
        if fault and "corrupt" in fault.kind:
            data = bytes(len(data))
        step = len(data) or 1
        if fault and "slow" in fault.kind:
            step = 4096
        for at in range(0, len(data), step):
            self.wfile.write(data[at : at + step])
            if fault and "slow" in fault.kind:
                time.sleep(fault.value)
        if fault and "reset" in fault.kind:
            time.sleep(0.05)  # what was sent arrives before the reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _send_json(self, data: object) -> None:
        self._send(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def main(folder: str) -> None:
    """Serve a folder as the repository org/model until the input ends, and print the address."""
    files = {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*") if path.is_file()}
    with HubServer() as hub:
        hub.add("org/model", files)
        print(hub.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
