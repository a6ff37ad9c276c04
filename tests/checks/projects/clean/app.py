"""An app with which `flashkit check --strict` has nothing to complain about."""

import asyncio

from flashkit import (
    VLLM,
    NetworkVolume,
    Session,
    Weights,
    cpu_endpoint,
    embedding_endpoint,
    gpu_endpoint,
    orchestrator_endpoint,
)  # fmt: skip

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODELS = NetworkVolume("models", size=100, datacenter="EU-RO-1")
CALL_SECONDS = 60
TRACES = {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://otel.example.com"}

llm = gpu_endpoint(
    name="llm", gpu="L40S", workers=(1, 3), idle_timeout=300, execution_timeout_ms=60_000, volume=MODELS, env=TRACES,
    engine=VLLM(Weights("org/Model-8B", COMMIT), max_model_len=8192, quantization="fp8", expected_sessions=8),
)  # fmt: skip


@embedding_endpoint(
    name="search", gpu="L4", workers=(1, 2), idle_timeout=300, execution_timeout_ms=30_000, env=TRACES,
    weights=Weights("org/embedder", COMMIT),
)  # fmt: skip
async def search(texts: list[str], embed) -> list[list[float]]:
    return (await embed(texts)).tolist()


@cpu_endpoint(name="fetch", cpu="cpu5c-2-4", workers=(0, 4), concurrency=8, execution_timeout_ms=30_000, env=TRACES)
async def fetch(url: str) -> str:
    await asyncio.sleep(0)
    return url


@orchestrator_endpoint(
    name="agent", workers=(3, 20), idle_timeout=1800, execution_timeout_ms=90_000,
    env={**TRACES, "FLASHKIT_STATE": "{{ RUNPOD_SECRET_redis_url }}"},
)  # fmt: skip
async def agent(session: Session, urls: list[str]) -> list[str]:
    pages = await session.gather(*(session.call(fetch, url, timeout=30) for url in urls), partial=True)
    found = await session.call(search, [str(page) for page in pages], timeout=CALL_SECONDS / 2)
    await session.call(llm, prompt=str(len(found)), timeout=CALL_SECONDS)
    return urls


api = cpu_endpoint(name="api", workers=(2, 4), execution_timeout_ms=60_000, env=TRACES)


@api.get("/items")
async def items() -> list[str]:
    return await agent.remote(["a"])


@api.health
def is_fit() -> bool:
    return True
