"""{{ cookiecutter.project_name }}: a language model on vLLM, inside the worker.

`llm` answers OpenAI's requests below `/openai/v1`, chats and prompts; `extract` is a handler of its own on the same model.
"""

import os
from dataclasses import dataclass

from flashkit import LLM, VLLM, {% if cookiecutter.weights == "volume" %}DataCenter, {% endif %}GpuType, {% if cookiecutter.weights == "volume" %}NetworkVolume, {% endif %}Weights, gpu_endpoint

MODEL = Weights("Qwen/Qwen3-8B", revision="b968826d9c46dd6066d109eabc6255188de91218")
ENGINE = VLLM(
    MODEL,
    max_model_len=8192,
    expected_sessions=16,
    tool_call_parser="hermes",
    base_url=os.environ.get("FLASHKIT_LLM_URL"),  # a server that stands in for it on a machine without a GPU
)


@dataclass
class Contact:
    """Who a text is from."""

    name: str
    email: str | None = None


# One warm worker to begin with; three where many people depend on it.
llm = gpu_endpoint(  # flashkit: ignore[FK104]
    name="{{ cookiecutter.project_slug.replace('_', '-') }}",
    gpu=GpuType.{{ cookiecutter.gpu }},
    workers=(1, 5),
    idle_timeout=300,
    execution_timeout_ms=80_000,
    engine=ENGINE,
{% if cookiecutter.weights == "volume" %}    datacenter=DataCenter.EU_RO_1,
    volume=NetworkVolume("model-weights", size=40, datacenter=DataCenter.EU_RO_1),
{% endif %})


@gpu_endpoint(  # flashkit: ignore[FK104]
    name="{{ cookiecutter.project_slug.replace('_', '-') }}-extract",
    gpu=GpuType.{{ cookiecutter.gpu }},
    workers=(1, 3),
    idle_timeout=300,
    execution_timeout_ms=60_000,
    engine=ENGINE,
{% if cookiecutter.weights == "volume" %}    datacenter=DataCenter.EU_RO_1,
    volume=NetworkVolume("model-weights", size=40, datacenter=DataCenter.EU_RO_1),
{% endif %})
async def extract(text: str, *, engine: LLM) -> Contact:
    """Return who wrote a text; the engine keeps to the form of the answer."""
    question = f"Who wrote this text, and what is their e-mail address?\n\n{text}"
    return await engine.chat(question, schema=Contact, max_tokens=200, temperature=0.0)
