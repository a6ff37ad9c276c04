"""Endpoints on scripted models, for tests of everything that is the same for every language model."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from flashkit import LLM, ScriptedLLM, Session, gpu_endpoint, orchestrator_endpoint


def shout(body: dict) -> str:
    return body["messages"][-1]["content"].upper() + "!"


FORECAST = {"tool_calls": [{"name": "forecast", "arguments": {"city": "Oslo"}}]}

llm = gpu_endpoint(
    name="llm",
    gpu="A100",
    workers=(1, 1),
    engine=ScriptedLLM(
        {"weather": FORECAST, "where": {"json": {"city": "Oslo", "people": 709}}, "story": ("word " * 256).strip()},
        otherwise="Grüße, 世界! 🎌",
        model="tiny",
        max_model_len=400,
        tokens_per_second=400,
        fail_on={"teapot": 418, "overload": 503},
    ),
)

slow = gpu_endpoint(
    name="slow",
    gpu="A100",
    workers=(1, 1),
    execution_timeout_ms=5_000,
    engine=ScriptedLLM("word " * 10_000, tokens_per_second=20),
)

mortal = gpu_endpoint(
    name="mortal",
    gpu="A100",
    workers=(0, 1),
    engine=ScriptedLLM("word " * 10_000, tokens_per_second=20, fail_on={"poison": "die"}),
)


@dataclass
class Place:
    city: str
    people: int


@gpu_endpoint(name="teller", gpu="A100", workers=(1, 1), engine=ScriptedLLM(shout))
async def tell(topic: str, engine: LLM) -> str:
    return (await engine.chat(f"tell me of {topic}")).text


@gpu_endpoint(
    name="finder", gpu="A100", workers=(0, 1), engine=ScriptedLLM({"Oslo": {"json": {"city": "Oslo", "people": 709}}})
)
class Finder:
    async def run(self, city: str, engine: LLM) -> Place:
        return await engine.chat(f"where is {city}?", schema=Place)


@gpu_endpoint(name="speller", gpu="A100", workers=(0, 1), engine=ScriptedLLM("a b c d e f", tokens_per_second=100))
async def spell(engine: LLM, tokens: int = 99) -> AsyncIterator[str]:
    async for number_and_token in numbered(engine):
        number, token = number_and_token
        if number >= tokens:
            break
        yield token


async def numbered(engine: LLM) -> AsyncIterator[tuple[int, str]]:
    number = 0
    async for token in engine.stream("spell"):
        yield number, token
        number += 1


@orchestrator_endpoint(name="agent", workers=(0, 1))
async def agent(session: Session, question: str) -> str:
    answer = await session.call(llm, messages=[{"role": "user", "content": question}], timeout=30)
    told = await session.call(tell, "it", timeout=30)
    return f"{answer['choices'][0]['message']['content']} {told}"
