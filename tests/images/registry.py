"""A registry for images on loopback, as far as `docker push` needs one; it may ask for a password."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class Registry:
    """What was pushed."""

    user: str | None = None
    password: str = ""
    host: str = ""
    uploads: dict[str, bytearray] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2**31, middlewares=[self._check_login])
        app.router.add_get("/v2/", self._hello)
        app.router.add_post("/v2/{name:.+}/blobs/uploads/", self._begin)
        app.router.add_patch("/v2/uploads/{id}", self._append)
        app.router.add_put("/v2/uploads/{id}", self._finish)
        app.router.add_get("/v2/{name:.+}/blobs/{digest}", self._blob)
        app.router.add_put("/v2/{name:.+}/manifests/{tag}", self._manifest)
        app.router.add_get("/v2/{name:.+}/manifests/{tag}", self._read_manifest)
        return app

    @web.middleware
    async def _check_login(self, request: web.Request, handler):
        wanted = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        if self.user is not None and request.headers.get("Authorization") != f"Basic {wanted}":
            return web.json_response(
                {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]},
                status=401,
                headers={"WWW-Authenticate": 'Basic realm="test"'},
            )
        return await handler(request)

    async def _hello(self, _request: web.Request) -> web.Response:
        return web.json_response({})

    async def _begin(self, _request: web.Request) -> web.Response:
        upload = uuid.uuid4().hex
        self.uploads[upload] = bytearray()
        return web.Response(status=202, headers={"Location": f"/v2/uploads/{upload}", "Range": "0-0"})

    async def _append(self, request: web.Request) -> web.Response:
        upload = request.match_info["id"]
        async for chunk in request.content.iter_any():
            self.uploads[upload] += chunk
        end = max(0, len(self.uploads[upload]) - 1)
        return web.Response(status=202, headers={"Location": f"/v2/uploads/{upload}", "Range": f"0-{end}"})

    async def _finish(self, request: web.Request) -> web.Response:
        body = bytes(self.uploads.pop(request.match_info["id"])) + await request.read()
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        assert digest == request.query["digest"]
        self.blobs[digest] = body
        return web.Response(status=201, headers={"Location": f"/v2/blobs/{digest}", "Docker-Content-Digest": digest})

    async def _blob(self, request: web.Request) -> web.Response:
        body = self.blobs.get(request.match_info["digest"])
        return web.Response(status=404) if body is None else web.Response(body=body)

    async def _manifest(self, request: web.Request) -> web.Response:
        body = await request.read()
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        self.manifests[f"{request.match_info['name']}:{request.match_info['tag']}"] = body
        return web.Response(status=201, headers={"Docker-Content-Digest": digest, "Location": "/"})

    async def _read_manifest(self, request: web.Request) -> web.Response:
        body = self.manifests.get(f"{request.match_info['name']}:{request.match_info['tag']}")
        return web.Response(status=404) if body is None else web.Response(body=body)


@contextmanager
def running_registry(*, user: str | None = None, password: str = "") -> Iterator[Registry]:
    """Run a registry in a thread for as long as the block lasts."""
    registry = Registry(user, password)
    loop = asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(registry.application())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        registry.host = f"127.0.0.1:{runner.addresses[0][1]}"
        return runner

    runner = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield registry
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
