"""An agent with a tool that fails at times and a model on a script: what the tests of metrics and accounts run."""

from typing import Any

from flashkit import LLM, ScriptedLLM, Session, cpu_endpoint, gpu_endpoint, orchestrator_endpoint


@cpu_endpoint(workers=(0, 1), idle_timeout=600)
async def lookup(query: str) -> list[str]:
    if query == "BROKEN":
        raise RuntimeError("no answer")
    return [f"about {query}"]


@gpu_endpoint(
    gpu="A100",
    workers=(0, 1),
    idle_timeout=600,
    engine=ScriptedLLM(["A short answer."], model="tiny", tokens_per_second=400),
)
async def writer(messages: list[dict[str, str]], engine: LLM) -> dict[str, Any]:
    answer: dict[str, Any] = await engine.request("/v1/chat/completions", {"messages": messages})
    return answer


@orchestrator_endpoint(workers=(0, 1), idle_timeout=600)
async def agent(session: Session, question: str) -> str:
    plan = await session.step("plan", str.upper, question)
    session.spend(tokens=7, cost_usd=0.25)
    await session.call(lookup, query=plan)
    answer = await session.call(writer, messages=[{"role": "user", "content": plan}])
    return str(answer["choices"][0]["message"]["content"])
