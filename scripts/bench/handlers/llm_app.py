"""Language models for scripts/bench/llm.py: a worker that is its engine, for each model."""

from flashkit import VLLM, Weights, gpu_endpoint

OPTIONS = {
    "tiny": {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 32, "kv_cache_memory_bytes": 64 << 20},
    "smollm2": {"max_model_len": 512, "max_num_seqs": 32},
}
WEIGHTS = {
    "tiny": Weights("tests/tiny-llama"),
    "smollm2": Weights("HuggingFaceTB/SmolLM2-135M-Instruct"),
}


def engine(name: str):
    """Return the engine of a model, for the worker and for the measurement without one."""
    return VLLM(WEIGHTS[name], warmup=["completion", "stream"], enable_prefix_caching=False, **OPTIONS[name])


tiny = gpu_endpoint(name="tiny", gpu="A100", workers=(1, 1), idle_timeout=3600, engine=engine("tiny"))
smollm2 = gpu_endpoint(name="smollm2", gpu="A100", workers=(1, 1), idle_timeout=3600, engine=engine("smollm2"))
