"""Cases of the rules for models."""

from __future__ import annotations

from tests.checks.cases.building import COMMIT, SMALL, VOLUME, Case, app, config, embedding, gpu, llm

CASES: dict[str, Case] = {
    "FK401": Case(
        broken=(
            app(llm("Qwen/Qwen3-8B")),
            app(llm("org/model"), config=config()),
            app(llm("Qwen/Qwen3-8B"), dockerfile="FROM a:1\nCOPY models /runpod-volume/models\nCOPY\nRUN true\n"),
        ),
        fine=(
            app(llm("Qwen/Qwen3-8B", volume=VOLUME)),
            app(llm("Qwen/Qwen3-8B"), toml="[endpoints.llm]\nmodel_cache = true\n"),
            app(llm("Qwen/Qwen3-1B")),
            app(llm("org/model")),
            app(gpu()),
            app(llm("Qwen/Qwen3-8B"), dockerfile="FROM a:1\nRUN flashkit weights pull Qwen/Qwen3-8B\n"),
            app(llm("Qwen/Qwen3-8B"), dockerfile="FROM a:1\nCOPY --from=weights /out /models\n"),
            app(
                f'llm = gpu_endpoint(name="llm", gpu="A100", execution_timeout_ms=9_000, '
                f'engine=VLLM(Weights("Qwen/Qwen3-8B", "{COMMIT}", path="/models/qwen")))'
            ),
        ),
    ),
    "FK402": Case(
        broken=(
            app(gpu(engine='VLLM(Weights("org/model"))', body="def {}(engine, text: str) -> str:\n    return text")),
            app(embedding('"org/model", "main"')),
        ),
        fine=(
            app(llm("org/model")),
            app(gpu()),
            app(embedding('"org/model", path="/models/x"')),
        ),
    ),
    "FK407": Case(
        broken=(
            app(llm("meta-llama/Llama-2-70b-hf", gpu="H100", volume=VOLUME)),
            app(llm("org/model", gpu="H100", volume=VOLUME), config=config()),
            app(llm("org/model", gpu="RTX 4090", vllm="max_model_len=1_000_000"), config=config(**SMALL)),
            app(
                llm("org/model", gpu="L4"),
                config=config(
                    hidden_size=4096,
                    intermediate_size=14336,
                    num_hidden_layers=32,
                    num_attention_heads=32,
                    max_position_embeddings=131072,
                ),
            ),
        ),
        fine=(
            app(
                llm("meta-llama/Llama-2-70b-hf", gpu="H100", gpu_count=2, vllm="tensor_parallel_size=2", volume=VOLUME)
            ),
            app(llm("TheBloke/Llama-2-70B-AWQ", gpu="H100", volume=VOLUME)),
            app(llm("org/model", gpu="L4", vllm="max_model_len=4096"), config=config(**SMALL)),
            app(llm("org/model", gpu="L4")),  # nothing is known of it
            app(llm("org/model", gpu="L4"), config='{"model_type": "odd"}'),
            app(llm("org/model", gpu="L4"), config="broken"),
            app(llm("org/Model-70B", gpu="L4", vllm='base_url="http://127.0.0.1:8000/v1"')),
        ),
    ),
    "FK408": Case(
        broken=(app(llm("org/model", gpu="H100", vllm="quantization='fp8', max_num_seqs=64"), config=config()),),
        fine=(
            app(llm("org/model", gpu="H100", vllm="max_num_seqs=64, max_model_len=2048"), config=config(**SMALL)),
            app(llm("org/model", gpu="H100", vllm="quantization='fp8'"), config=config()),
            app(llm("org/Model-8B", vllm="max_num_seqs=256")),
        ),
    ),
    "FK409": Case(
        broken=(
            app(llm("Qwen/Qwen3-8B-FP8", gpu="A100")),
            app(llm("Qwen/Qwen3-8B", gpu=["H100", "A100"], vllm="quantization='fp8'")),
            app(llm("nvidia/Qwen3-8B-NVFP4", gpu="H100")),
            app(llm("org/model"), config=config(quantization_config={"quant_method": "fp8"})),
        ),
        fine=(
            app(llm("Qwen/Qwen3-8B-FP8", gpu="L40S")),
            app(llm("Qwen/Qwen3-8B-AWQ", gpu="A100")),
            app(llm()),
            app(llm("nvidia/Qwen3-8B-NVFP4", gpu="B200")),
        ),
    ),
    "FK410": Case(
        broken=(
            app(llm("Qwen/Qwen3-8B", vllm="quantization='awq'")),
            app(llm("org/model", vllm="quantization='gptq'"), config=config(**SMALL)),
        ),
        fine=(
            app(llm("Qwen/Qwen3-8B-AWQ", vllm="quantization='awq'")),
            app(llm("Qwen/Qwen3-8B", vllm="quantization='fp8'")),
            app(
                llm("org/model", vllm="quantization='awq'"),
                config=config(**SMALL, quantization_config={"quant_method": "awq", "bits": 4}),
            ),
        ),
    ),
}
