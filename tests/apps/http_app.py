"""Load-balanced endpoints whose routes do what routes do in real life, good and bad."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from fastapi import FastAPI
from fastapi import Request as FastAPIRequest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.websockets import WebSocket

from flashkit import InputError, cpu_endpoint, current_job

api = cpu_endpoint(name="api", cpu="cpu5c-2-4", workers=(0, 3), execution_timeout_ms=5_000, concurrency=4)
state: dict[str, object] = {"is_fit": True}


@dataclass
class Item:
    name: str
    price: float = 1.0


@api.setup
async def load() -> None:
    gate = os.environ.get("GATE")
    while gate and not Path(gate).exists():
        await asyncio.sleep(0.02)
    state["model"] = "loaded"


@api.setup
def load_more() -> None:
    state["thread"] = "used"


@api.teardown
def unload() -> None:
    print("teardown was called", flush=True)


@api.health
def is_fit() -> bool:
    return bool(state["is_fit"])


@api.get("/items/{item_id}")
async def read(item_id: int, q: str = "", tags: list[str] | None = None, day: date | None = None) -> dict[str, object]:
    return {"item_id": item_id, "q": q, "tags": tags, "day": day, "model": state["model"]}


@api.post("/items")
async def create(item: Item) -> Item:
    return item


@api.put("/items/{item_id}")
def update(item_id: int, item: Item, dry_run: bool = False) -> dict[str, object]:
    return {"item_id": item_id, "name": item.name, "dry_run": dry_run}


@api.post("/add")
def add(a: int, b: int = 1) -> int:
    return a + b


@api.post("/echo")
async def echo(request: Request) -> dict[str, object]:
    body = await request.body()
    return {"bytes": len(body), "type": request.headers.get("content-type"), "pid": os.getpid()}


@api.get("/files/{path:path}")
async def file(path: str) -> PlainTextResponse:
    return PlainTextResponse(f"content of {path}", headers={"x-made-by": "route"})


@api.post("/chat")
async def chat(text: str, fail_at: int = -1, pause: float = 0.0) -> AsyncIterator[str]:
    for index, word in enumerate(text.split()):
        if index == fail_at:
            raise ValueError("lost the thread")
        yield word
        await asyncio.sleep(pause)


@api.get("/ticks")
async def ticks(mark: str) -> AsyncIterator[int]:
    try:
        for number in range(1000):
            yield number
            await asyncio.sleep(0.05)
    finally:
        Path(mark).write_text("closed")


@api.get("/letters")
def letters(text: str) -> Iterator[str]:
    yield from text


@api.get("/fail")
async def fail(how: str) -> object:
    if how == "input":
        raise InputError("no such thing")
    if how == "status":
        raise HTTPException(409, "somebody was faster", headers={"retry-after": "3"})
    if how == "output":
        return object()
    if how == "cancel":
        raise asyncio.CancelledError
    if how == "exit":
        raise SystemExit(3)
    raise LookupError("broken")


@api.get("/sleep")
async def sleep(seconds: float, mark: str = "") -> str:
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        if mark:
            Path(mark).write_text("cancelled")
        raise
    return "slept"


@api.get("/block")
def block(seconds: float) -> bool:
    for _ in range(round(seconds / 0.02)):
        if current_job().cancelled:
            break
        time.sleep(0.02)
    return current_job().cancelled


@api.get("/pid")
async def pid() -> dict[str, object]:
    print(f"request {current_job().id}")
    return {"pid": os.getpid()}


@api.post("/health")
async def set_health(fit: bool) -> bool:
    state["is_fit"] = fit
    return fit


@api.delete("/items/{item_id}")
async def remove(item_id: int) -> None:
    return None


@api.patch("/more")
async def more(**fields: int) -> dict[str, int]:
    return fields


@api.get("/stream")
async def raw_stream() -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"part "
            await asyncio.sleep(0.05)

    return StreamingResponse(parts(), media_type="text/plain")


@api.get("/raw-fail")
async def raw_fail() -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        yield b"part "
        raise OSError("the disk is gone")

    return StreamingResponse(parts(), media_type="text/plain")


@api.websocket("/live/{room}")
async def live(websocket: WebSocket, room: str, times: int = 1) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        if text == "fail":
            raise RuntimeError("socket trouble")
        if text == "end":
            return
        for _ in range(times):
            await websocket.send_text(f"{room}: {text}")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
    yield {"secret": "from lifespan"}
    print("lifespan ended", flush=True)


fast = FastAPI(lifespan=lifespan)


@fast.get("/hello/{name}")
async def hello(name: str, request: FastAPIRequest) -> dict[str, str]:
    return {"hello": name, "secret": request.state.secret}


@fast.websocket("/ws")
async def ws(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_json({"secret": websocket.state.secret})
    await websocket.close()


async def no_lifespan(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


site = cpu_endpoint(name="site", workers=(0, 1)).mount(fast).mount(no_lifespan, "/plain")


@site.get("/own")
async def own() -> str:
    return "the route goes first"


broken = cpu_endpoint(name="broken", workers=(0, 1))


@broken.setup
async def break_down() -> None:
    raise OSError("the GPU has fallen off the bus")


@broken.get("/")
async def never() -> None: ...


failing_app = FastAPI()


async def fails_to_start(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


unstartable = cpu_endpoint(name="unstartable").mount(fails_to_start)


@api.post("/stubborn")
def stubborn() -> None:
    """Looks at nothing and takes its time."""
    time.sleep(600)
