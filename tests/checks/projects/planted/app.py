"""An app with every mistake that `flashkit check` knows. Keys are put in by the test."""

import asyncio
import time

from flashkit import (
    VLLM,
    GpuPool,
    NetworkVolume,
    Session,
    Weights,
    cpu_endpoint,
    embedding_endpoint,
    gpu_endpoint,
    orchestrator_endpoint,
)  # fmt: skip

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HF_TOKEN = "@HF_TOKEN@"  # FK301


# FK103, FK201
@gpu_endpoint(name="painter", gpu=[GpuPool.AMPERE_24, "H100"], idle_timeout=5, flashboot=False)  # FK101, FK102, FK107
def paint(prompt, size: int = 512) -> bytes:  # FK501, FK505
    return prompt.encode() * size


# FK104, FK108, FK202, FK207, FK401, FK402, FK407
llm = gpu_endpoint(
    name="llm", gpu="A100", workers=(1, 3), execution_timeout_ms=600_000, engine=VLLM(Weights("org/Large-70B"))
)

# FK111, FK408, FK409
odd = gpu_endpoint(
    name="odd", gpu="A100", gpu_count=3, workers=(1, 3), execution_timeout_ms=60_000,
    engine=VLLM(Weights("org/odd", COMMIT), quantization="fp8", tensor_parallel_size=3, max_num_seqs=256,
                max_model_len=100_000),
)  # fmt: skip

# FK410, FK411
plain = gpu_endpoint(
    name="plain", gpu="H100", workers=(1, 3), execution_timeout_ms=60_000,
    volume=NetworkVolume("weights", size=10, datacenter="EU-RO-1"),
    engine=VLLM(Weights("org/Plain-8B", COMMIT), quantization="awq"),
)  # fmt: skip


# FK404, FK405, FK406
@embedding_endpoint(
    name="search", gpu="L4", workers=(1, 2), execution_timeout_ms=30_000, datacenter=["EU-RO-1", "US-GA-2", "EU-CZ-1"],
    volume=[NetworkVolume("weights", size=20, datacenter="US-GA-2"), NetworkVolume("more", size=20)],
    weights=Weights("org/embedder", COMMIT),
)  # fmt: skip
async def search(texts: list[str], embed) -> list[list[float]]:
    return (await embed(texts)).tolist()


# FK110, FK302, FK503
@cpu_endpoint(
    name="fetch", cpu="cpu3c-1-2", workers=(0, 2), execution_timeout_ms=60_000,
    env={"API_KEY": "@OPENAI_KEY@"},  # FK301
)  # fmt: skip
async def fetch(url: str) -> str:
    time.sleep(1)  # FK502
    await asyncio.sleep(0)
    return url


# FK504
@cpu_endpoint(name="crunch", concurrency=64, execution_timeout_ms=30_000)
def crunch(n: int) -> int:
    return n


# FK206, FK701, FK702, FK703
@orchestrator_endpoint(name="agent", idle_timeout=10, execution_timeout_ms=30_000)
async def agent(session: Session, urls: list[str]) -> list[str]:
    await session.call(paint, prompt="a cat")  # FK203
    await session.gather(*(session.call(fetch, url, timeout=30) for url in ("a", "b", "c")))  # FK106, FK204, FK205
    return urls


# FK105, FK506, FK507
api = cpu_endpoint(name="api", execution_timeout_ms=60_000, env={"HEALTH_CHECK_PATH": "/healthz"})


@api.get("/items")
def items() -> list[str]:  # flashkit: ignore[FK9999]
    return []


UNUSED = 1  # flashkit: ignore[FK201]
