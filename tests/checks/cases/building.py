"""For each rule, small projects that break it and projects that follow it, as the texts of their files.

Keys are put together here, so that no file of this repository looks as if it held one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Files = Mapping[str, str]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
IMPORTS = """
import asyncio
import time

from flashkit import (
    VLLM, DataCenter, Embedding, GpuPool, NetworkVolume, Session, Weights,
    cpu_endpoint, embedding_endpoint, gpu_endpoint, orchestrator_endpoint,
)
"""
HF_TOKEN = "hf_" + "QmZkVtRxLsWpNdJcYbGh" + "TfAeUoIiKqSz"
OPENAI_KEY = "sk-proj-" + "a8Kd93mXq2" * 4
RUNPOD_KEY = "rpa_" + "9F3KX7QW2M" * 4
RANDOM_VALUE = "q7Rz0xW" + "kP4vLm2Td9sY8"
SECRETS = (HF_TOKEN, OPENAI_KEY, RUNPOD_KEY, RANDOM_VALUE)


@dataclass(frozen=True)
class Case:
    """Projects that break a rule, and projects that do not."""

    broken: tuple[Files, ...]
    fine: tuple[Files, ...]
    environment: str = "production"


def app(*parts: str, **files: str) -> dict[str, str]:
    """Return a project: its app, and other files by names with `_` for each dot and slash that a name cannot have."""
    names = {name: FILE_NAMES[name] for name in files}
    return {"app.py": IMPORTS + "\n\n".join(parts), **{names[name]: text for name, text in files.items()}}


FILE_NAMES = {
    "dockerfile": "Dockerfile", "dockerignore": ".dockerignore", "gitignore": ".gitignore", "env": ".env",
    "env_example": ".env.example", "requirements": "requirements.txt", "constraints": "constraints.txt",
    "hub": ".runpod/hub.json", "tests": ".runpod/tests.json", "config": "models/org/model/config.json",
    "tools": "tools.py", "toml": "flashkit.toml", "script": "start.sh", "settings": "settings.toml",
}  # fmt: skip


def cpu(name: str = "tool", body: str = "def {}(text: str) -> str:\n    return text", **options: Any) -> str:
    """Return a CPU endpoint's source."""
    return decorated("cpu_endpoint", name, body, options)


def embedding(weights: str) -> str:
    """Return an embedding endpoint's source; `weights` are the arguments of `Weights`, as source."""
    given = {"gpu": "L4", "weights": f"Weights({weights})"}
    return f'e = embedding_endpoint(name="e", {arguments(given)})'


def gpu(name: str = "model", body: str = "def {}(text: str) -> str:\n    return text", **options: Any) -> str:
    """Return a GPU endpoint's source."""
    return decorated("gpu_endpoint", name, body, {"gpu": "A100", **options})


def agent(body: str = "return question", name: str = "agent", **options: Any) -> str:
    """Return an orchestrator's source; `body` is what its function does."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    function = f"async def {{}}(session: Session, question: str) -> str:\n{lines}"
    return decorated("orchestrator_endpoint", name, function, options)


def api(health: bool = False, **options: Any) -> str:
    """Return a load-balanced endpoint's source."""
    made = f'api = cpu_endpoint(name="api", {arguments(options)})'
    text = f'{made}\n\n\n@api.get("/items")\ndef items() -> int:\n    return 1'
    return text + ("\n\n\n@api.health\ndef is_fit() -> bool:\n    return True" if health else "")


def decorated(decorator: str, name: str, body: str, options: Mapping[str, Any]) -> str:
    return f'@{decorator}(name="{name.lower()}", {arguments(options)})\n{body.replace("{}", name)}'


def arguments(options: Mapping[str, Any]) -> str:
    given = {"execution_timeout_ms": 60_000, **options}
    return ", ".join(f"{name}={value}" if name in CODE else f"{name}={value!r}" for name, value in given.items())


CODE = ("engine", "volume", "weights", "datacenter")
"""Options that cases give as source text."""


def llm(weights: str = "Qwen/Qwen3-8B", *, vllm: str = "", name: str = "llm", **options: Any) -> str:
    """Return an endpoint that is its vLLM engine; `vllm` are options of the engine, as source."""
    given = {"gpu": "A100", "engine": f'VLLM(Weights("{weights}", "{COMMIT}"), {vllm})', **options}
    return f'{name} = gpu_endpoint(name="{name}", {arguments(given)})'


def config(**fields: Any) -> str:
    """Return the config.json of a model as Llama 2 70B is, with other fields."""
    llama = {
        "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 4096,
        "torch_dtype": "float16", **fields,
    }  # fmt: skip
    return json.dumps(llama)


SMALL = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
         "num_key_value_heads": 4}  # fmt: skip
"""About 1.1 billion parameters, 2.2 GB."""
HUB = '{"config": {"runsOn": "GPU", "gpuIds": "ADA_24", "env": []}}'
VOLUME = 'NetworkVolume("models", size=200)'


def volume(place: str | None = None, name: str = "models", size: int = 200) -> str:
    return f'NetworkVolume("{name}", size={size}' + (f', datacenter="{place}")' if place else ")")
