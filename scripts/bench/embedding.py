"""64 callers with one text each: a flashkit worker, the model offline, LitServe and infinity, on the same texts.

Texts are passages of this project's documentation, of 128 to 256 tokens ("long": the model's work dominates), and
single sentences of about 16 ("short": what is around the model shows). All contenders embed the same texts with the
same all-MiniLM-L6-v2, in turn, several rounds; a figure is the median of the rounds' ratios. `cpu_vs_*` are the same
for texts per second of processor time, of all processes together, clients included: on a machine that others use too,
those hold when times do not.

- offline: all texts known beforehand, tokenized and run by the engine's own model in one maximal batch of 64 after the
  other; or sorted by length into batches that suit the processor. `vs_offline` is against the quicker one of both.
- engine: 64 tasks that call `embed([text])` in one process, without jobs.
- worker: 64 clients that post to /runsync of the emulator; a real worker process takes the jobs.
- litserve, infinity: 64 clients that post to their servers, as their documentation sets them up, batches of 64.

flashkit computes in bfloat16 where the processor has instructions for it and the vectors stay the same; the others in
float32. `*_float32` compares with a worker in float32, and `cosine_off_ppm_*` says how far, at most, the cosine of a
vector with transformers' own mean in float32 is from 1, in millionths.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import uvloop
from measure import print_result
from servers import free_port

from flashkit.emulator.server import Emulator, LocalEndpoint
from flashkit.settings import Settings
from flashkit.spec import EndpointSpec, EngineSpec, Kind, Weights, WorkerBounds
from flashkit.worker.engines.embedding.engine import EmbeddingEngine, load_embedding
from flashkit.worker.phases import Phases

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODELS = ROOT / ".flashkit" / "models"
NAME = "sentence-transformers/all-MiniLM-L6-v2"
PEERS = ROOT / ".venv-embedding-peers" / "bin" / "python"
CLIENTS = 64
START_SECONDS = 180

Embed = Callable[[str], Awaitable[Sequence[float]]]


def long_texts(count: int) -> list[str]:
    """Return passages of 100 to 190 words."""
    words = [word for page in sorted((ROOT / "docs").rglob("*.md")) for word in _prose(page.read_text())]
    chance = random.Random(5)
    texts, start = [], 0
    while len(texts) < count:
        length = chance.randint(90, 170)
        texts.append(" ".join((words * 2)[start : start + length]))
        start = (start + length) % len(words)
    return texts


def short_texts(count: int) -> list[str]:
    """Return pieces of 8 to 16 words."""
    words = " ".join(long_texts(count)).split()
    chance = random.Random(6)
    starts = [chance.randrange(len(words) - 20) for _ in range(count)]
    return [" ".join(words[start : start + chance.randint(8, 16)]) for start in starts]


def _prose(page: str) -> list[str]:
    lines = re.sub(r"```.*?```", " ", page, flags=re.DOTALL).splitlines()
    return " ".join(line for line in lines if line[:1].isalpha()).split()


class Offline:
    """The engine's own model, with all texts known beforehand."""

    def __init__(self, engine: EmbeddingEngine) -> None:
        loaded = engine.loaded
        self._tokenizer, self._model, self.thread = loaded.tokenizer, loaded.model, loaded.thread

    def maximal(self, texts: Sequence[str]) -> None:
        for start in range(0, len(texts), CLIENTS):
            self._model.run(self._tokenizer.encode(texts[start : start + CLIENTS]))

    def sorted(self, texts: Sequence[str]) -> None:
        tokens = sorted(self._tokenizer.encode(texts), key=lambda text: len(text.ids))
        batch: list[Any] = []
        for text in tokens:
            if self._model.tokens_of([*batch, text]) > self._model.batch_tokens:
                self._model.run(batch)
                batch = []
            batch.append(text)
        self._model.run(batch)


async def rate_of_clients(texts: Sequence[str], embed: Embed) -> float:
    """Return texts/s of 64 callers, each of which sends its next text when it has the vector of the last one."""
    left: Iterator[str] = iter(texts)

    async def client() -> None:
        for text in left:
            await embed(text)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return len(texts) / (time.perf_counter() - started)


async def rate_of_offline(texts: Sequence[str], run: Callable[[Sequence[str]], None], thread: Executor) -> float:
    started = time.perf_counter()
    await asyncio.get_running_loop().run_in_executor(thread, run, texts)
    return len(texts) / (time.perf_counter() - started)


def post(session: aiohttp.ClientSession, url: str, body: Callable[[str], Any], read: Callable[[Any], Any]) -> Embed:
    async def embed(text: str) -> Sequence[float]:
        async with session.post(url, json=body(text)) as response:
            answer = await response.json()
            assert response.status == 200, answer
        return read(answer)

    return embed


def local_endpoint(name: str) -> LocalEndpoint:
    spec = EndpointSpec(
        name=name,
        kind=Kind.EMBEDDING,
        gpu=("RTX 4090",),
        workers=WorkerBounds(1, 1),
        concurrency=CLIENTS,
        engine=EngineSpec("embedding", Weights(NAME)),
    )
    command = (sys.executable, "-m", "flashkit.worker", f"embedding_handlers.py:{name}")
    return LocalEndpoint(spec=spec, command=command, cwd=HERE / "handlers")


async def flashkit_workers(stack: AsyncExitStack, session: aiohttp.ClientSession) -> dict[str, Embed]:
    names = {"worker": "vectors", "worker_float32": "vectors-float32"}
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-embedding-"))
    environ = {"PATH": os.environ["PATH"], "FLASHKIT_WEIGHTS_DIR": str(MODELS)}
    emulator = await stack.enter_async_context(
        Emulator([local_endpoint(name) for name in names.values()], state_dir=Path(folder), environ=environ)
    )
    return {
        contender: post(
            session,
            f"{emulator.url}/v2/{name}/runsync?wait=120000",
            lambda text: {"input": {"input": text}},
            lambda answer: answer["output"]["data"][0]["embedding"],
        )
        for contender, name in names.items()
    }


async def peers(stack: AsyncExitStack, session: aiohttp.ClientSession) -> dict[str, Embed]:
    """Start the servers that are installed, and return how to ask them."""
    if not PEERS.exists():
        print("LitServe and infinity are not installed: scripts/setup --peers")
        return {}
    started = {
        "litserve": await stack.enter_async_context(peer_server("litserve_server.py")),
        "infinity": await stack.enter_async_context(peer_server("infinity_server.py")),
    }
    asking = {
        "litserve": ("/predict", lambda text: {"input": text}, lambda answer: answer["embedding"]),
        "infinity": (
            "/embeddings",
            lambda text: {"input": text, "model": "model"},
            lambda answer: answer["data"][0]["embedding"],
        ),
    }
    embeds = {}
    for name, url in started.items():
        path, body, read = asking[name]
        embed = post(session, url + path, body, read)
        if await is_ready(embed):
            embeds[name] = embed
        else:
            print(f"{name} did not answer")
    return embeds


@contextlib.asynccontextmanager
async def peer_server(script: str) -> AsyncIterator[str]:
    port = free_port()
    quiet = {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [str(PEERS), str(HERE / "embedding_peers" / script), str(MODELS / NAME), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **quiet},
        start_new_session=True,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its workers too
        process.wait()


async def is_ready(embed: Embed) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(aiohttp.ClientError, AssertionError):
            await embed("ready?")
            return True
        await asyncio.sleep(0.5)
    return False


def reference(texts: Sequence[str]) -> np.ndarray:
    """Return what transformers gives: the mean of the last hidden states, in float32."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(MODELS / NAME), AutoModel.from_pretrained(MODELS / NAME).eval()
    rows = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            rows.append(model(**tokens).last_hidden_state.mean(1)[0].numpy())
    return np.stack(rows)


async def least_cosine(embed: Embed, texts: Sequence[str], expected: np.ndarray) -> float:
    vectors = np.array([await embed(text) for text in texts], dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((vectors * expected).sum(1) / norms).min())


async def load() -> EmbeddingEngine:
    spec = EngineSpec("embedding", Weights(NAME))
    engine = await load_embedding(spec, replace(Settings(), weights_dir=MODELS), Phases())
    await engine.warm_up()
    return engine


async def measure(rounds: int, count: int) -> dict[str, float]:
    """Run everything and return the figures."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CLIENTS), timeout=aiohttp.ClientTimeout(total=300)
            )
        )
        engine = await load()
        asked = {**await flashkit_workers(stack, session), **await peers(stack, session)}
        asked["engine"] = one_text(engine)
        for embed in asked.values():
            assert await is_ready(embed)
        offline = Offline(engine)
        figures: dict[str, float] = {}
        for kind, texts in (("", long_texts(count)), ("_short", short_texts(count * 4))):
            lengths = [len(tokens.ids) for tokens in engine.loaded.tokenizer.encode(texts)]
            about = f"{min(lengths)} to {max(lengths)} tokens, {statistics.mean(lengths):.0f} on average"
            print(f"{len(texts)} texts of {about}")
            figures |= await figures_of(rounds, kind, texts, offline, asked)
        texts = long_texts(32)
        expected = await asyncio.to_thread(reference, texts)
        for name, embed in asked.items():
            if name != "engine":
                figures[f"cosine_off_ppm_{name}"] = (1 - await least_cosine(embed, texts, expected)) * 1e6
        await engine.close()
    return figures


def one_text(engine: EmbeddingEngine) -> Embed:
    embed_texts = engine.handle()

    async def embed(text: str) -> Any:
        return (await embed_texts([text]))[0]

    return embed


async def figures_of(
    rounds: int, kind: str, texts: Sequence[str], offline: Offline, asked: dict[str, Embed]
) -> dict[str, float]:
    rates: dict[str, list[float]] = {}
    per_cpu: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for name, run in itertools.chain(
            (("offline_maximal", offline.maximal), ("offline_sorted", offline.sorted)), asked.items()
        ):
            is_offline = name.startswith("offline")
            before = cpu_seconds()
            rate = await (rate_of_offline(texts, run, offline.thread) if is_offline else rate_of_clients(texts, run))
            if number:  # the first round warms up
                rates.setdefault(name, []).append(rate)
                per_cpu.setdefault(name, []).append(len(texts) / (cpu_seconds() - before))
    for name, values in rates.items():
        spread = f"{min(values):.1f} to {max(values):.1f}"
        costs = f"{1000 / statistics.median(per_cpu[name]):.2f} ms of CPU for a text"
        print(f"{name + kind:24} {statistics.median(values):9.1f} texts/s ({spread}), {costs}", flush=True)
    figures = {f"texts_per_s_{name}{kind}": statistics.median(values) for name, values in rates.items()}
    return {**ratios_of(rates, "", kind), **ratios_of(per_cpu, "cpu_", kind), **figures}


def ratios_of(rates: dict[str, list[float]], prefix: str, kind: str) -> dict[str, float]:
    """Return how the worker does against the others."""
    offline = [max(pair) for pair in zip(rates["offline_maximal"], rates["offline_sorted"], strict=True)]
    figures = {
        "vs_offline": ratio(rates["worker"], offline),
        "vs_offline_maximal": ratio(rates["worker"], rates["offline_maximal"]),
        "engine_vs_offline": ratio(rates["engine"], offline),
    }
    for peer in ("litserve", "infinity"):
        if peer in rates:
            figures[f"vs_{peer}"] = ratio(rates["worker"], rates[peer])
            figures[f"vs_{peer}_float32"] = ratio(rates["worker_float32"], rates[peer])
    return {f"{prefix}{name}{kind}": value for name, value in figures.items()}


def cpu_seconds() -> float:
    """Return the processor time of this process and all those it started."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--texts", type=int, default=256, help="long texts in a round; short ones are four times as many"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers end with it then, too
    figures: dict[str, Any] = uvloop.run(measure(options.rounds, options.texts))
    for name in ("vs_litserve", "vs_infinity"):
        figures.setdefault(name, None)  # not installed, or not running
    print_result("embedding", figures)


if __name__ == "__main__":
    main()
