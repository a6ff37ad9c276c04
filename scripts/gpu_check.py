"""The engines on an accelerator: are the answers right, and how far is the speed from what the device can do.

The limits are measured on the device itself: FLOP/s of a large matrix product in the engine's precision, and bytes/s of
a large copy. A batch of embeddings cannot be quicker than its FLOPs, nor than reading the weights once; a step of a
language model cannot be quicker than reading the weights. What is printed is the share of the nearer limit.

Without an accelerator it says "skipped" and exits 0; `--on-cpu` runs everything on the processor, to try the script.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
MODELS = ROOT / ".flashkit" / "models"
EMBEDDING_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
LANGUAGE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
LENGTHS = (32, 128, 256)
BATCH_TOKENS = (512, 2_048, 8_192, 16_384, 32_768, 65_536)
CALLERS = (1, 64, 512)
ANSWERS = (1, 16, 64)
ANSWER_TOKENS = 128
LEAST_COSINE = 0.9999
SENTENCE = "a worker takes jobs from its queue and answers them one by one until nobody asks any more"


def why_skipped(*, on_cpu: bool) -> str | None:
    """Return why there is nothing to check, None where there is."""
    for package in ("torch", "transformers", "numpy"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    import torch

    if not on_cpu and not torch.cuda.is_available():
        return "there is no accelerator that torch can use"
    if not (MODELS / EMBEDDING_MODEL / "model.safetensors").is_file():
        return f"{EMBEDDING_MODEL} is not below {MODELS}: scripts/fetch_models"
    return None


class Limits:
    """What the device does at most."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.bytes_per_s = self._copy()

    def flops(self, dtype: str, *, size: int) -> float:
        """Return FLOP/s of a product of two square matrices."""
        import torch

        left = torch.randn(size, size, device=self._device).to(getattr(torch, dtype))
        seconds = best_seconds(lambda: left @ left, self._device)
        return float(2 * size**3 / seconds)

    def _copy(self) -> float:
        import torch

        count = 1 << (28 if self._device == "cuda" else 24)
        source = torch.zeros(count, dtype=torch.float32, device=self._device)
        target = torch.empty_like(source)
        return 8 * count / best_seconds(lambda: target.copy_(source), self._device)


def best_seconds(run: Callable[[], Any], device: str, *, tries: int = 5) -> float:
    """Return the time of the quickest of some runs, after one that warms up."""
    times = []
    for _ in range(tries + 1):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


# Embeddings


async def check_embeddings(limits: Limits, *, quick: bool) -> dict[str, Any]:
    """Return tokens/s of the embedding engine by batch and by callers, and how far its vectors are from float32."""
    from flashkit.engines.embedding import Embedding
    from flashkit.settings import Settings
    from flashkit.spec import Weights
    from flashkit.worker.engines.embedding.engine import load_embedding
    from flashkit.worker.phases import Phases

    found: dict[str, Any] = {}
    whole = None
    for name, options in (("float32", {"dtype": "float32"}), ("default", {}), ("compiled", {"compile": True})):
        if quick and name == "compiled":
            continue
        spec = Embedding(Weights(EMBEDDING_MODEL), **options)
        engine = await load_embedding(spec, replace(Settings(), weights_dir=MODELS), Phases())
        started = time.perf_counter()
        await engine.warm_up()
        vectors = await engine.handle()(texts_of(64, 100))
        if whole is None:
            whole = vectors
        found[name] = {
            "dtype": engine.loaded.model.dtype,
            "warm_up_s": round(time.perf_counter() - started, 2),
            "least_cosine": round(float((vectors * whole).sum(1).min()), 6),
            "batches": batch_figures(engine, limits, quick=quick),
            "callers": await caller_figures(engine, quick=quick),
            "recovers_from_oom": await recovers_from_oom(engine),
        }
        await engine.close()
    return found


def texts_of(count: int, words: int) -> list[str]:
    some = SENTENCE.split()
    return [" ".join(some[(start + index) % len(some)] for index in range(words)) for start in range(count)]


def batch_figures(engine: Any, limits: Limits, *, quick: bool) -> list[dict[str, Any]]:
    model, tokenizer = engine.loaded.model, engine.loaded.tokenizer
    peak = limits.flops(model.dtype, size=1024 if quick else 8192)
    figures = []
    for length, tokens in batch_sizes(quick=quick):
        batch = tokenizer.encode(texts_of(max(1, tokens // length), length * 2))
        batch = [text._replace(ids=text.ids[:length]) for text in batch]
        seconds = best_seconds(lambda batch=batch: model.run(batch), model.device)
        count = sum(len(text.ids) for text in batch)
        limit = max(flops_of(model, length) * count / peak, weight_bytes(model) / limits.bytes_per_s)
        figures.append(
            {
                "length": length,
                "tokens": count,
                "tokens_per_s": round(count / seconds),
                "of_limit": round(limit / seconds, 3),
            }
        )
    return figures


def batch_sizes(*, quick: bool) -> Iterator[tuple[int, int]]:
    if quick:
        yield 32, 512
        return
    for length in LENGTHS:
        for tokens in BATCH_TOKENS:
            yield length, tokens


def flops_of(model: Any, length: int) -> float:
    """Return FLOPs of one token in a text of this length: twice the linear layers, and attention's two products."""
    import torch

    config = model.encoder.config
    linear = sum(m.weight.numel() for m in model.encoder.modules() if isinstance(m, torch.nn.Linear))
    return float(2 * linear + 4 * length * config.hidden_size * config.num_hidden_layers)


def weight_bytes(model: Any) -> int:
    import torch

    layers = (m for m in model.encoder.modules() if isinstance(m, torch.nn.Linear))
    return sum(parameter.numel() * parameter.element_size() for layer in layers for parameter in layer.parameters())


async def caller_figures(engine: Any, *, quick: bool) -> list[dict[str, Any]]:
    """Return texts/s and the time of one text, for callers that each send the next text after the last vector."""
    embed = engine.handle()
    figures = []
    for callers in CALLERS[:1] if quick else CALLERS:
        texts = iter(texts_of(callers * (2 if quick else 20), 100))
        times: list[float] = []

        async def call(texts: Iterator[str] = texts, times: list[float] = times) -> None:
            for text in texts:
                started = time.perf_counter()
                await embed([text])
                times.append(time.perf_counter() - started)

        before, started = replace(engine.work), time.perf_counter()
        await asyncio.gather(*(call() for _ in range(callers)))
        seconds = time.perf_counter() - started
        figures.append(
            {
                "callers": callers,
                "texts_per_s": round(len(times) / seconds, 1),
                "p50_ms": round(sorted(times)[len(times) // 2] * 1000, 2),
                "texts_per_batch": round(len(times) / (engine.work.batches - before.batches), 1),
                "model_busy": round((engine.work.seconds - before.seconds) / seconds, 3),
            }
        )
    return figures


async def recovers_from_oom(engine: Any) -> bool | None:
    """Return whether a batch that does not fit is computed in parts; None where memory cannot be limited."""
    import torch

    if engine.loaded.model.device != "cuda":
        return None
    texts = texts_of(2_000, 250)
    spare = torch.cuda.memory_allocated() + (64 << 20)
    torch.cuda.set_per_process_memory_fraction(min(1.0, spare / torch.cuda.get_device_properties(0).total_memory))
    try:
        return len(await engine.handle()(texts)) == len(texts)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


# A language model


async def check_vllm(limits: Limits, *, quick: bool) -> dict[str, Any]:
    """Return tokens/s of vLLM for some answers at the same time, against reading the weights once for each step."""
    from flashkit.engines.vllm import VLLM
    from flashkit.settings import Settings
    from flashkit.spec import Weights
    from flashkit.worker.engines.engine import EngineRequest, load_engine
    from flashkit.worker.phases import Phases

    folder = MODELS / LANGUAGE_MODEL
    if importlib.util.find_spec("vllm") is None or not (folder / "model.safetensors").is_file():
        return {"skipped": "vLLM is not installed, or its model is not there"}
    spec = VLLM(Weights(LANGUAGE_MODEL), max_model_len=1024, warmup=["completion"])
    engine = await load_engine(spec, replace(Settings(), weights_dir=MODELS), Phases())
    await engine.warm_up()
    weights = (folder / "model.safetensors").stat().st_size
    tokens = 16 if quick else ANSWER_TOKENS

    async def answer() -> int:
        body = {"prompt": "Once upon a time", "max_tokens": tokens, "ignore_eos": True, "temperature": 0.0}
        response = await engine.open(EngineRequest("/v1/completions", body))
        return int(json.loads(await response.read())["usage"]["completion_tokens"])

    figures = []
    for answers in ANSWERS[:1] if quick else ANSWERS:
        started = time.perf_counter()
        made = sum(await asyncio.gather(*(answer() for _ in range(answers))))
        seconds = time.perf_counter() - started
        limit = tokens * weights / limits.bytes_per_s
        figures.append(
            {"answers": answers, "tokens_per_s": round(made / seconds, 1), "of_limit": round(limit / seconds, 3)}
        )
    await engine.close()
    return {"weights_mb": round(weights / 1e6), "answers": figures}


async def check(*, on_cpu: bool, quick: bool, with_vllm: bool) -> dict[str, Any]:
    import torch

    device = "cpu" if on_cpu else "cuda"
    limits = Limits(device)
    found: dict[str, Any] = {
        "device": platform.processor() or platform.machine() if on_cpu else torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "gb_per_s": round(limits.bytes_per_s / 1e9, 1),
        "embedding": await check_embeddings(limits, quick=quick),
    }
    if with_vllm:
        found["vllm"] = await check_vllm(limits, quick=quick)
    return found


def is_right(found: dict[str, Any]) -> bool:
    """True when vectors are those of float32 and too little memory was no failure."""
    embeddings = found["embedding"].values()
    return all(each["least_cosine"] >= LEAST_COSINE and each["recovers_from_oom"] is not False for each in embeddings)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on-cpu", action="store_true", help="on the processor, to try the script")
    parser.add_argument("--quick", action="store_true", help="one batch and one caller")
    parser.add_argument("--no-vllm", action="store_true", help="the embedding engine alone")
    options = parser.parse_args(arguments)
    reason = why_skipped(on_cpu=options.on_cpu)
    if reason is not None:
        print(f"skipped: {reason}")
        print(json.dumps({"name": "gpu_check", "skipped": reason}))
        return 0
    found = asyncio.run(check(on_cpu=options.on_cpu, quick=options.quick, with_vllm=not options.no_vllm))
    for name, figures in found["embedding"].items():
        for each in figures["batches"]:
            print(f"embedding {name:9} {json.dumps(each)}")
        for each in figures["callers"]:
            print(f"embedding {name:9} {json.dumps(each)}")
    for each in found.get("vllm", {}).get("answers", ()):
        print(f"vllm {json.dumps(each)}")
    print(json.dumps({"name": "gpu_check", "ok": is_right(found), **found}))
    return 0 if is_right(found) else 1


if __name__ == "__main__":
    sys.exit(main())
