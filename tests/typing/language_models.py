"""What `engine: LLM` is to a type checker; only checked by mypy and never run."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, assert_type

from pydantic import BaseModel

from flashkit import LLM, VLLM, Endpoint, EngineEndpoint, EngineSpec, ScriptedLLM, Weights, gpu_endpoint
from flashkit.testing import with_engine
from flashkit.worker.engines.llm import Completion, Token, Usage


class Ticket(BaseModel):
    team: str


async def slowly(body: dict[str, Any]) -> str:
    return "slowly"


assert_type(ScriptedLLM("Hello."), EngineSpec)
ScriptedLLM(["one", {"text": "two"}], otherwise={"json": 3})
ScriptedLLM({"weather": "Rain."}, fail_on={"a": 500, "b": "die"})
ScriptedLLM(lambda body: str(body["model"]))
ScriptedLLM(slowly)
ScriptedLLM(3)  # type: ignore[arg-type]
ScriptedLLM("Hello.", fail_on={"a": "explode"})  # type: ignore[dict-item]
ScriptedLLM("Hello.", tokens_per_secnd=3)  # type: ignore[arg-type]

llm = gpu_endpoint(name="llm", gpu="A100", engine=VLLM(Weights("organisation/model")))
assert_type(llm, EngineEndpoint)


@gpu_endpoint(name="triage", gpu="A100", engine=ScriptedLLM("x"))
async def triage(mail: str, engine: LLM) -> Ticket:
    return await engine.chat(mail, schema=Ticket)


@gpu_endpoint(name="tell", gpu="A100", engine=ScriptedLLM("x"))
async def tell(topic: str, engine: LLM) -> AsyncIterator[str]:
    async for token in engine.stream(topic):
        yield token


async def endpoints() -> None:
    assert_type(await triage.remote("mail"), Ticket)
    assert_type(await tell.remote("topic"), list[str])
    assert_type(await llm.remote(prompt="a"), Any)
    assert_type(await with_engine(triage, ScriptedLLM("x")).remote("mail"), Ticket)
    other: Endpoint[..., Any, ..., Any] = with_engine(llm, ScriptedLLM("x"))
    assert_type(await other.remote(prompt="a"), Any)


async def questions(engine: LLM) -> None:
    assert_type(await engine.chat("hi"), Completion)
    assert_type(await engine.chat([{"role": "user", "content": "hi"}], temperature=0), Completion)
    assert_type(await engine.chat("hi", schema=Ticket), Ticket)
    assert_type(await engine.chat("hi", schema=list[int]), list[int])
    assert_type(await engine.complete("Once"), Completion)
    assert_type(engine.stream("hi"), AsyncGenerator[Token, None])
    async for token in engine.stream(prompt="Once", max_tokens=3):
        text: str = token
        assert_type(token.finish_reason, str | None)
        assert_type(token.usage, Usage | None)
    assert_type(await engine.request("/v1/models"), Any)
    await engine.chat(3)  # type: ignore[call-overload]
    await engine.chat("hi", schema="Ticket")  # type: ignore[call-overload]
    await engine.complete(["a"])  # type: ignore[arg-type]
    del text
