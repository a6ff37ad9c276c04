"""Endpoints with a real vLLM, for tests: a language model with its own handler beside it, and one for embeddings."""

from __future__ import annotations

from flashkit import VLLM, Weights, gpu_endpoint

TINY = Weights("tests/tiny-llama")
OPTIONS = {
    "max_model_len": 512,
    "dtype": "float32",
    "kv_cache_memory_bytes": 16 << 20,
    "max_num_seqs": 16,
}

llm = gpu_endpoint(
    name="llm",
    gpu="A100",
    workers=(1, 1),
    idle_timeout=600,
    engine=VLLM(TINY, tool_call_parser="hermes", **OPTIONS),
)
vectors = gpu_endpoint(
    name="vectors",
    gpu="A100",
    workers=(1, 1),
    idle_timeout=600,
    engine=VLLM(TINY, runner="pooling", convert="embed", **OPTIONS),
)
