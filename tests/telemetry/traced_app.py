"""An agent with a tool, an embedding-like model on a script, and a tool that never comes back."""

import time

from flashkit import LLM, ScriptedLLM, Session, cpu_endpoint, gpu_endpoint, orchestrator_endpoint


@cpu_endpoint(workers=(0, 1), idle_timeout=600)
async def search(query: str) -> list[str]:
    return [f"about {query}"]


@cpu_endpoint(workers=(0, 1), idle_timeout=600)
async def broken(query: str) -> list[str]:
    raise RuntimeError(f"no answer to {query}")


@gpu_endpoint(
    gpu="A100",
    workers=(0, 1),
    idle_timeout=600,
    engine=ScriptedLLM(["A short answer."], model="tiny", tokens_per_second=400),
)
async def writer(prompt: str, engine: LLM) -> str:
    return "".join([token async for token in engine.stream(prompt)])


@orchestrator_endpoint(workers=(0, 1), idle_timeout=600, execution_timeout_ms=120_000)
async def agent(session: Session, question: str, how: str = "well") -> str:
    plan = await session.step("plan", _plan, question)
    session.spend(tokens=7, cost_usd=0.001)
    if how == "hangs":
        await session.step("slow_search", _hang)
    if how == "breaks":
        await session.call(broken, query=plan)
    found = await session.call(search, query=plan)
    return await session.call(writer, prompt=f"{plan}: {found}")


def _plan(question: str) -> str:
    return question.upper()


async def _hang() -> None:
    time.sleep(600)


@cpu_endpoint(workers=(0, 1), idle_timeout=600)
async def asks(query: str) -> list[str]:
    """A tool that calls another one without a session."""
    return await search.remote(query=query)
