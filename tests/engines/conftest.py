"""Fixtures for engines: what must be installed, and checkpoints that are made here."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from flashkit import VLLM, Weights
from flashkit.settings import Settings
from flashkit.worker.engines.engine import load_engine
from flashkit.worker.engines.vllm import VllmEngine
from flashkit.worker.phases import Phases
from tests.engines.checkpoints import make_llama, make_lora

TINY = Weights("tests/tiny-llama")
TINY_OPTIONS: dict[str, Any] = {
    "max_model_len": 512,
    "dtype": "float32",
    "kv_cache_memory_bytes": 1 << 20,  # 16 blocks of 128 tokens: four of the longest requests
    "max_num_seqs": 8,
}


@pytest.fixture(scope="session")
def require_vllm() -> None:
    """Skip without vLLM; in CI it must be there."""
    if importlib.util.find_spec("vllm") is None:
        missing = "vLLM is not installed: scripts/setup --models"
        pytest.fail(missing) if os.environ.get("FLASHKIT_REQUIRE_EVERYTHING") else pytest.skip(missing)


@pytest.fixture(scope="session")
def tiny_llama(require_vllm) -> Path:
    """The folder of a Llama of two layers with random weights."""
    return make_llama()


@pytest.fixture(scope="session")
def tiny_lora(require_vllm) -> Path:
    """The folder of a LoRA adapter for it."""
    return make_lora()


@pytest.fixture(scope="session")
def model_settings(tiny_llama: Path, tiny_lora: Path) -> Settings:
    """Settings that find the checkpoints made here."""
    return Settings(weights_dir=tiny_llama.parents[1])


LoadEngine = Callable[..., Awaitable[VllmEngine]]


@pytest.fixture(scope="module")
async def load_tiny(model_settings: Settings) -> AsyncIterator[LoadEngine]:
    """Load the small Llama with options; what was loaded is closed in the end."""
    async with AsyncExitStack() as stack:

        async def load(*, warm: bool = False, phases: Phases | None = None, **options: Any) -> VllmEngine:
            spec = VLLM(TINY, **{**TINY_OPTIONS, **options})
            engine = await load_engine(spec, model_settings, phases or Phases())
            stack.push_async_callback(engine.close)
            if warm:
                await engine.warm_up()
            return engine

        yield load
