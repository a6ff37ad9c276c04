"""Fixtures for engines: what must be installed, and checkpoints that are made here."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from tests.engines.checkpoints import make_llama, make_lora


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
