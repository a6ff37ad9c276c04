"""The public types, only checked by mypy and never run: what calls, jobs and options are to a type checker.

A `type: ignore` states that the line below it is a mistake: mypy fails when it stops being one.
"""

from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, assert_type

from flashkit import (
    DataCenter,
    Endpoint,
    GpuPool,
    GpuType,
    NetworkVolume,
    Session,
    Weights,
    cpu_endpoint,
    embedding_endpoint,
    gpu_endpoint,
    orchestrator_endpoint,
)
from flashkit.endpoint import SpawnedJob
from flashkit.http_client import HttpAnswer


@dataclass
class Page:
    url: str


@cpu_endpoint(name="sync", cpu="cpu5c-4-8", workers=(0, 10), datacenter=DataCenter.US_GA_2)
def count(text: str, times: int = 1) -> int:
    return len(text) * times


@cpu_endpoint(workers=3, datacenter=["US-GA-2", DataCenter.EU_RO_1])
async def fetch(url: str) -> Page:
    return Page(url)


@gpu_endpoint(gpu="A100", volume=NetworkVolume("models"))
def letters(text: str) -> Iterator[str]:
    yield from text


@gpu_endpoint(gpu=[GpuType.NVIDIA_L40S, GpuPool.AMPERE_80, "H100"])
async def tokens(prompt: str) -> AsyncIterator[str]:
    yield prompt


api = cpu_endpoint(name="api", workers=(0, 3))


@api.get("/pages/{page}")
async def read_page(page: int, language: str = "en") -> Page:
    return Page(f"{page}.{language}")


@api.setup
def load() -> None: ...


async def application(scope: Any, receive: Any, send: Any) -> None: ...


site = gpu_endpoint(name="site", gpu="A100").mount(application, "/v1")


class Model:
    def run(self, text: str) -> str:
        return text


# mypy gives a decorated class its old type (python/mypy#3135), so that `.remote` needs this form; pyright does not
model = gpu_endpoint(gpu=GpuType.NVIDIA_H200)(Model)


@embedding_endpoint(gpu="RTX 4090", weights=Weights("organisation/model"))
async def embed_texts(texts: list[str], embed: Any) -> list[list[float]]:
    return [[float(value) for value in row] for row in await embed(texts)]


@orchestrator_endpoint()
async def agent(session: Session, question: str) -> Page:
    return await session.call(fetch, question, timeout=30)


@orchestrator_endpoint(gpu="A100", workers=(3, 20))
async def talking_agent(session: Session, question: str) -> AsyncIterator[str]:
    yield question


async def a_sync_function() -> None:
    assert_type(count("a", times=2), int)
    assert_type(await count.local("a"), int)
    assert_type(await count.remote("a", times=2), int)
    assert_type(await count.spawn("a"), SpawnedJob[int])
    assert_type(await (await count.spawn("a")).output(timeout=1.0), int)
    async for chunk in count.stream("a"):
        assert_type(chunk, Any)
    count(1)  # type: ignore[arg-type]
    await count.remote("a", tims=2)  # type: ignore[call-arg]
    await count.remote()  # type: ignore[call-arg]


async def an_async_function() -> None:
    coroutine = fetch("u")
    assert_type(await assert_type(coroutine, Coroutine[Any, Any, Page]), Page)
    assert_type(await fetch.local("u"), Page)
    assert_type(await fetch.remote(url="u"), Page)
    assert_type(await (await fetch.spawn("u")).output(), Page)
    await fetch.local(1)  # type: ignore[arg-type]


async def generators() -> None:
    assert_type(letters("abc"), Iterator[str])
    assert_type(await letters.remote("abc"), list[str])
    assert_type(tokens("abc"), AsyncIterator[str])
    assert_type(await tokens.remote("abc"), list[str])
    assert_type(await tokens.local("abc"), list[str])
    async for token in tokens("abc"):
        assert_type(token, str)


async def a_class() -> None:
    assert_type(model(), Model)
    assert_type(model().run("a"), str)
    assert_type(await model.remote("a"), Any)


async def an_embedding_endpoint(engine: Any) -> None:
    assert_type(await embed_texts(["a"], engine), list[list[float]])
    assert_type(await embed_texts.remote(["a"]), list[list[float]])


async def a_load_balanced_endpoint() -> None:
    assert_type(await read_page(1), Page)
    await read_page("1")  # type: ignore[arg-type]
    assert_type(await api.request("GET", "/pages/1"), HttpAnswer)
    async for part in api.stream("GET", "/pages/1"):
        assert_type(part, Any)
    site.get("/more")(load)
    api.get(load)  # type: ignore[arg-type]
    api.mount("app")  # type: ignore[arg-type]


async def an_orchestrator(session: Session) -> None:
    assert_type(await agent(session, "q"), Page)
    assert_type(await agent.remote("q"), Page)
    assert_type(await agent.local(question="q"), Page)
    assert_type(await talking_agent.remote("q"), list[str])
    await agent.remote(session, "q")  # type: ignore[call-arg, arg-type]


async def steps_of_a_session(session: Session) -> None:
    assert_type(await session.step("length", len, "abc"), int)
    assert_type(await session.step("page", fetch.definition.function, "u"), Any)
    assert_type(await session.step("sync", str.upper, "u"), str)
    assert_type(await session.call(count, "a", times=2), int)
    assert_type(await session.gather(session.call(fetch, "u"), session.call(fetch, "v")), list[Page])
    some = await session.gather(*(session.call(fetch, url) for url in "ab"), partial=True)
    assert_type(some, list[Page | BaseException])
    await session.step("length", len, 1)  # type: ignore[call-overload]


def options_that_are_wrong() -> None:
    cpu_endpoint(nmae="a")  # type: ignore[arg-type]
    cpu_endpoint(workers="3")  # type: ignore[arg-type]
    cpu_endpoint(env={"LEVEL": 1})  # type: ignore[dict-item]
    gpu_endpoint(gpu=4090)  # type: ignore[call-overload]
    gpu_endpoint("A100")  # type: ignore[call-overload]
    embedding_endpoint(gpu="A100")
    embedding_endpoint(gpu="A100", weights="organisation/model")  # type: ignore[arg-type]
    orchestrator_endpoint(idle_timeout="5")  # type: ignore[arg-type]


def names(endpoint: Endpoint[..., Any, ..., Any]) -> str:
    return endpoint.name


names(count)
names(agent)
names(model)
