"""A language model through a queue worker against vLLM's engine called directly: the same model, the same run.

Each round asks for completions in two ways: from vLLM's `AsyncLLM` in this process, and by streamed OpenAI requests
to the local platform with a real worker. Clients ask one request after the other, 1, 4 or 16 of them at the same time.
Both engines are loaded all the time; ways take turns, and who begins changes with the round.

- vs_direct_16: tokens/s of 16 clients through the worker, as a share of those without it: the median of the rounds'
  shares, because the machine's speed changes between rounds.
- ttft_overhead_ms: median time to the first piece of an answer through the worker, less the same without it.
- batching_gain_16: tokens/s of 16 clients through the worker, as a multiple of those of one.
- posts_per_256: what a worker posts for one streamed answer of 256 tokens, 16 of them at a time.

`tiny` has two layers and random weights, so that everything but the model is seen; `smollm2_` figures are those of
SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from handlers import llm_app
from measure import print_result

from flashkit.emulator.platform import JobRequest
from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.settings import Settings
from flashkit.worker.engines.engine import load_engine
from flashkit.worker.phases import Phases

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODELS = ROOT / ".flashkit" / "models"
TINY = ROOT / ".flashkit" / "test-models"
CONCURRENCIES = (1, 4, 16)
SAMPLES = 15
TOKENS = {"tiny": 256, "smollm2": 48}
REQUESTS = 3
"""Of a client, one after the other."""
PROMPT = "Why is the sky blue? Explain it to a child, number {}."
_START_SECONDS = 300

Ask = Callable[[int, int], Awaitable[float]]
"""Asks for a number of tokens with a prompt of this number, and gives the seconds until the first of them."""


def body(number: int, tokens: int) -> dict[str, Any]:
    return {
        "prompt": PROMPT.format(number),
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0.8,
        "seed": number,
    }


def direct(llm: Any, name: str) -> Ask:
    """Return how to ask vLLM's engine in this process."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    async def ask(number: int, tokens: int) -> float:
        request = body(number, tokens)
        params = SamplingParams(
            max_tokens=tokens,
            ignore_eos=True,
            temperature=request["temperature"],
            seed=number,
            output_kind=RequestOutputKind.DELTA,
        )
        started = time.perf_counter()
        first = 0.0
        count = 0
        async for output in llm.generate(
            {"prompt": request["prompt"]}, params, f"{name}-{number}-{time.monotonic_ns()}"
        ):
            first = first or time.perf_counter() - started
            count += len(output.outputs[0].token_ids)
        assert count == tokens
        return first

    return ask


def through_worker(http: aiohttp.ClientSession, url: str) -> Ask:
    """Return how to ask the worker, as an OpenAI client does."""

    async def ask(number: int, tokens: int) -> float:
        started = time.perf_counter()
        first = 0.0
        text = b""
        async with http.post(f"{url}/completions", json={**body(number, tokens), "stream": True}) as response:
            assert response.status == 200, await response.text()
            async for piece in response.content.iter_any():
                first = first or time.perf_counter() - started
                text += piece
        assert text.endswith(b"data: [DONE]\n\n"), text[-300:]
        return first

    return ask


def numbers() -> Iterator[int]:
    """Yield numbers for prompts: the same prompt twice would be cheaper the second time."""
    number = 0
    while True:
        yield number
        number += 1


async def tokens_per_second(ask: Ask, prompts: Iterator[int], *, clients: int, requests: int, tokens: int) -> float:
    async def client() -> None:
        for _ in range(requests):
            await ask(next(prompts), tokens)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return clients * requests * tokens / (time.perf_counter() - started)


async def compare(asks: dict[str, Ask], *, tokens: int, requests: int, rounds: int) -> dict[str, Any]:
    """Return medians of tokens/s and of first-token times, by the way of asking, and of the rounds' shares."""
    prompts = numbers()
    load = partial(tokens_per_second, prompts=prompts, tokens=tokens, requests=requests)
    rates: dict[tuple[str, int], list[float]] = {}
    firsts: dict[str, list[float]] = {}
    for name, ask in asks.items():  # a round that does not count
        await load(ask, clients=max(CONCURRENCIES))
        firsts[name] = []
    for number in range(rounds):
        for clients in CONCURRENCIES:
            for name, ask in list(asks.items())[:: 1 if number % 2 else -1]:
                rates.setdefault((name, clients), []).append(await load(ask, clients=clients))
    for _ in range(SAMPLES):
        for name, ask in asks.items():
            firsts[name].append(await ask(next(prompts), 4))
    return {
        "rates": {key: statistics.median(values) for key, values in rates.items()},
        "shares": {clients: shares(rates["worker", clients], rates["direct", clients]) for clients in CONCURRENCIES},
        "firsts": {name: statistics.median(values) * 1000 for name, values in firsts.items()},
    }


def shares(ours: list[float], theirs: list[float]) -> list[float]:
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


async def count_posts(emulator: Emulator, endpoint: str, *, tokens: int, concurrency: int) -> float:
    """Return how many posts a streamed answer takes: its output lists what came with each."""
    inputs = [{**body(1000 + number, tokens), "stream": True} for number in range(concurrency)]
    jobs = [emulator.submit(endpoint, JobRequest(input=each)) for each in inputs]
    async with asyncio.timeout(_START_SECONDS):
        while not all(job.status.is_final for job in jobs):
            await asyncio.sleep(0.02)
    assert all(job.status == "COMPLETED" for job in jobs), {job.error for job in jobs}
    return statistics.median(len(job.output) for job in jobs)


async def until_ready(http: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(_START_SECONDS):
        while True:
            async with http.get(f"{url}/health") as answer:
                if (await answer.json())["workers"]["ready"] >= 1:
                    return
            await asyncio.sleep(0.1)


async def measure(name: str, *, rounds: int) -> dict[str, float]:
    """Return the figures of one model."""
    endpoint = getattr(llm_app, name)
    weights_dir = TINY if name == "tiny" else MODELS
    local = LocalEndpoint(
        spec=endpoint.spec,
        command=(sys.executable, "-m", "flashkit.worker", f"llm_app.py:{name}"),
        cwd=HERE / "handlers",
        env={"FLASHKIT_WEIGHTS_DIR": str(weights_dir)},
    )
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        emulator = await stack.enter_async_context(Emulator([local], state_dir=folder))
        await until_ready(http, f"{emulator.url}/v2/{name}")
        engine = await load_engine(endpoint.spec.engine, Settings(weights_dir=weights_dir), Phases())
        stack.push_async_callback(engine.close)
        await engine.warm_up()
        print(engine.describe(), flush=True)  # type: ignore[attr-defined]
        asks = {
            "direct": direct(engine.llm, name),  # type: ignore[attr-defined]
            "worker": through_worker(http, f"{emulator.url}/v2/{name}/openai/v1"),
        }
        found = await compare(asks, tokens=TOKENS[name], requests=REQUESTS, rounds=rounds)
        posts = await count_posts(emulator, name, tokens=256, concurrency=16)
    rates, firsts = found["rates"], found["firsts"]
    for (way, clients), rate in sorted(rates.items()):
        print(f"{name:8} {way:7} {clients:3} clients {rate:9.1f} tokens/s")
    if rounds > 1:
        low, _, high = statistics.quantiles(found["shares"][16], n=4)
        print(f"{name:8} 16 clients through the worker: half of the rounds between {low:.3f} and {high:.3f} of direct")
    print(f"{name:8} first token: direct {firsts['direct']:.1f} ms, worker {firsts['worker']:.1f} ms; {posts:g} posts")
    return {
        **{f"vs_direct_{clients}": statistics.median(found["shares"][clients]) for clients in reversed(CONCURRENCIES)},
        "ttft_overhead_ms": firsts["worker"] - firsts["direct"],
        "batching_gain_16": rates["worker", 16] / rates["worker", 1],
        "posts_per_256": posts,
        "tokens_per_s_16": rates["worker", 16],
        "direct_tokens_per_s_16": rates["direct", 16],
    }


async def measure_all(models: list[str], rounds: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name in models:
        prefix = "" if name == "tiny" else f"{name}_"
        figures |= {prefix + key: value for key, value in (await measure(name, rounds=rounds)).items()}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=["tiny", "smollm2"], default=["tiny", "smollm2"])
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.engines.checkpoints import make_llama

    make_llama(root=TINY)
    print_result("llm", uvloop.run(measure_all(arguments.models, arguments.rounds)))


if __name__ == "__main__":
    main()
