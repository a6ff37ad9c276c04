"""One WebSocket on its way through the balancer: messages pass in both directions until one side closes."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState
from yarl import URL

from flashkit.emulator.bodies import encode_json
from flashkit.emulator.load_balancing.balancer import BalancedRequest, Refused
from flashkit.emulator.load_balancing.exchange import (
    BROKEN_STATUS,
    REQUEST_HEADER,
    WORKER_HEADER,
    ClientHungUp,
    Progress,
    Way,
    exit_report,
    pass_on,
    unless,
)
from flashkit.settings import LOOPBACK

OPENED_STATUS: Final = 101
_MESSAGES_AHEAD: Final = 8
_WORKER_GONE: Final = 1011
_NO_STATUS: Final = 1005
_ABNORMAL: Final = 1006
_NOT_FOR_WORKERS: Final = frozenset({"connection", "upgrade", "host", WORKER_HEADER, REQUEST_HEADER})
_HANDSHAKE: Final = b"sec-websocket-"


class Inbox:
    """What the client sends, read ahead by a few messages so that its going away is seen before it is accepted."""

    def __init__(self, client: WebSocket) -> None:
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_open = False
        self.messages: asyncio.Queue[Message] = asyncio.Queue(_MESSAGES_AHEAD)
        self._reading = asyncio.ensure_future(self._read(client))

    def close(self) -> None:
        """Read no more."""
        self._reading.cancel()

    async def _read(self, client: WebSocket) -> None:
        while (message := await client.receive())["type"] != "websocket.disconnect":
            await self.messages.put(message)
        if not self.is_open:
            self.gone.set_result(None)
        await self.messages.put(message)


@dataclass(slots=True)
class SocketExchange:
    """One WebSocket between a client and a worker."""

    way: Way
    request: BalancedRequest
    target: bytes
    scope: Scope
    progress: Progress

    async def run(self, receive: Receive, send: Send) -> None:
        """Serve the connection to its end."""
        client = WebSocket(self.scope, receive, send)
        await client.receive()  # the wish to connect
        inbox = Inbox(client)
        try:
            await unless(inbox.gone, self._relay(client, inbox))
        except ClientHungUp:
            self.progress.problem = "the client hung up"
        except Refused as exc:
            await self._deny(client, exc.status, encode_json(exc.body), problem=str(exc))
        finally:
            inbox.close()

    async def _relay(self, client: WebSocket, inbox: Inbox) -> None:
        async with self.way.balancer.worker_for(self.request) as worker_id:
            self.progress.worker_id = worker_id
            self.progress.began_at = self.way.clock.now()
            await self._connect(client, inbox, worker_id)

    async def _connect(self, client: WebSocket, inbox: Inbox, worker_id: str) -> None:
        port = self.way.port_of(worker_id)
        try:
            async with self.way.session.ws_connect(
                URL(f"http://{LOOPBACK}:{port}{self.target.decode('latin-1')}", encoded=True),
                headers=self._headers(),
                protocols=self.scope.get("subprotocols", ()),
                max_msg_size=self.way.defaults.request_limit_bytes,
                autoping=True,
                compress=0,
            ) as worker:
                await self._talk(client, inbox, worker)
        except aiohttp.WSServerHandshakeError as exc:
            await self._deny(client, exc.status, b"", problem=None)
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            ended = await exit_report(self.way.balancer, worker_id)
            error = f"the worker died: {ended}" if ended else f"the worker cannot be reached: {exc}"
            raise Refused(BROKEN_STATUS, error, worker=worker_id) from exc

    async def _talk(self, client: WebSocket, inbox: Inbox, worker: aiohttp.ClientWebSocketResponse) -> None:
        inbox.is_open = True
        self.progress.status = OPENED_STATUS
        self.progress.first_byte_at = self.way.clock.now()
        worker_id = self.progress.worker_id or ""
        own = [(WORKER_HEADER.encode(), worker_id.encode()), (REQUEST_HEADER.encode(), self.request.id.encode())]
        await client.accept(subprotocol=worker.protocol, headers=own)
        directions = {
            asyncio.ensure_future(self._carry_up(inbox, worker)),
            asyncio.ensure_future(self._carry_down(client, worker)),
        }
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.wait(directions)
        for direction in directions:
            if not direction.cancelled():
                direction.result()
        if client.client_state is not WebSocketState.DISCONNECTED:
            await self._close(client, worker.close_code)

    async def _carry_up(self, inbox: Inbox, worker: aiohttp.ClientWebSocketResponse) -> None:
        with contextlib.suppress(aiohttp.ClientConnectionError):  # the worker is gone: the other direction tells
            while (message := await inbox.messages.get())["type"] != "websocket.disconnect":
                text, data = message.get("text"), message.get("bytes")
                if text is not None:
                    self.progress.request_bytes += len(text)
                    await worker.send_str(text)
                elif data is not None:
                    self.progress.request_bytes += len(data)
                    await worker.send_bytes(data)
            code = message.get("code", 1000)
            await worker.close(code=1000 if code in (_NO_STATUS, _ABNORMAL) else code)

    async def _carry_down(self, client: WebSocket, worker: aiohttp.ClientWebSocketResponse) -> None:
        with contextlib.suppress(WebSocketDisconnect):  # the client is gone: the other direction tells
            async for message in worker:
                self.progress.response_bytes += len(message.data)
                if message.type is aiohttp.WSMsgType.TEXT:
                    await client.send_text(message.data)
                elif message.type is aiohttp.WSMsgType.BINARY:
                    await client.send_bytes(message.data)

    async def _close(self, client: WebSocket, code: int | None) -> None:
        reason = ""
        if code is None or code == _ABNORMAL:
            ended = await exit_report(self.way.balancer, self.progress.worker_id or "")
            self.progress.problem = reason = f"the worker died: {ended}" if ended else "the worker broke the connection"
            code = _WORKER_GONE
        with contextlib.suppress(RuntimeError):  # the client closed it in this moment
            await client.close(1000 if code == _NO_STATUS else code, reason)

    async def _deny(self, client: WebSocket, status: int, body: bytes, *, problem: str | None) -> None:
        """Answer a client whose WebSocket was not opened."""
        self.progress.status = status
        self.progress.problem = problem
        with contextlib.suppress(RuntimeError):  # it has hung up
            await client.send_denial_response(Response(body, status, media_type="application/json"))

    def _headers(self) -> dict[str, str]:
        passed: dict[str, Any] = {REQUEST_HEADER: self.request.id}
        for name, value in pass_on(self.scope["headers"], without=_NOT_FOR_WORKERS):
            if not name.startswith(_HANDSHAKE):
                passed[name.decode("latin-1")] = value.decode("latin-1")
        return passed
