"""The planner's figures against vLLM's own: bytes of the KV cache, and the sessions that it says fit at start."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flashkit import VLLM, Weights
from flashkit.plan.model_shape import ModelShape, read_shape
from flashkit.plan.sizing import kv_bytes, kv_bytes_per_token, weights_bytes
from flashkit.settings import Settings
from flashkit.worker.engines.engine import EngineRequest, load_engine
from flashkit.worker.phases import Phases
from tests.engines.conftest import TINY
from tests.plan.configs import DEEPSEEK_V3, GEMMA_3_12B, LLAMA_3_70B, QWEN_3_8B

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # vLLM's own
MODELS = Path(__file__).parents[2] / ".flashkit" / "models"
SLIDING = Weights("tests/tiny-gemma")
SLIDING_CONFIG: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "vocab_size": 512, "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 7, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "max_position_embeddings": 4096, "sliding_window": 256,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"] * 2, "torch_dtype": "float32",
    "query_pre_attn_scalar": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
SMOLLM = Weights("HuggingFaceTB/SmolLM2-135M-Instruct")


@dataclass(frozen=True)
class Seen:
    """What vLLM said of one start."""

    shape: ModelShape
    cache_bytes: int
    max_model_len: int
    dtype: str
    in_flight: int
    block_size: int
    blocks: int
    concurrency: float


async def start(weights: Weights, settings: Settings, folder: Path, cache_bytes: int, **options: Any) -> Seen:
    """Start vLLM once, ask it for its cache, and stop it."""
    spec = VLLM(weights, kv_cache_memory_bytes=cache_bytes, max_num_seqs=4, enforce_eager=True, **options)
    engine = await load_engine(spec, settings, Phases())
    try:
        response = await engine.open(EngineRequest("/metrics", method="GET"))
        text = (await response.read()).decode()
        await response.close()
    finally:
        await engine.close()
    labels = dict(re.findall(r'(\w+)="([^"]*)"', re.search(r"^vllm:cache_config_info\{(.*)\}", text, re.MULTILINE)[1]))
    return Seen(
        shape=read_shape(json.loads((folder / "config.json").read_text())),
        cache_bytes=cache_bytes,
        max_model_len=options["max_model_len"],
        dtype=options["dtype"],
        in_flight=options.get("max_num_batched_tokens", 0),
        block_size=int(labels["block_size"]),
        blocks=int(labels["num_gpu_blocks"]),
        concurrency=float(labels["kv_cache_max_concurrency"]),
    )


@pytest.fixture(scope="module")
async def tiny(model_settings: Settings, tiny_llama: Path) -> Seen:
    return await start(TINY, model_settings, tiny_llama, 3 << 20, max_model_len=512, dtype="float32")


@pytest.fixture(scope="module")
async def sliding(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """A Gemma of two layers with full attention and five with a window, its weights made up by vLLM."""
    root = tmp_path_factory.mktemp("models")
    folder = root / SLIDING.name
    shutil.copytree(tiny_llama, folder)
    (folder / "config.json").write_text(json.dumps(SLIDING_CONFIG))
    return await start(
        SLIDING, Settings(weights_dir=root), folder, 8 << 20,
        max_model_len=4096, dtype="float32", load_format="dummy", max_num_batched_tokens=512,
    )  # fmt: skip


@pytest.fixture(scope="module")
async def smollm(require_vllm) -> Seen:
    folder = MODELS / SMOLLM.name
    if not folder.is_dir():
        missing = "SmolLM2 is not here: scripts/fetch_models"
        pytest.fail(missing) if os.environ.get("FLASHKIT_REQUIRE_EVERYTHING") else pytest.skip(missing)
    settings = Settings(weights_dir=MODELS)
    return await start(SMOLLM, settings, folder, 300 << 20, max_model_len=2048, dtype="bfloat16")


def check_bytes(seen: Seen) -> None:
    """As many blocks fit as the planner's bytes of a token make, exactly."""
    each = kv_bytes_per_token(seen.shape, kv_dtype=seen.dtype).value
    assert seen.blocks == seen.cache_bytes // (each * seen.block_size)


def check_concurrency(seen: Seen) -> None:
    """The sessions that fit are those that vLLM reports, within 5 %."""
    session = kv_bytes(
        seen.shape, seen.max_model_len, kv_dtype=seen.dtype, block_tokens=seen.block_size, batched_tokens=seen.in_flight
    ).value
    assert seen.cache_bytes / session == pytest.approx(seen.concurrency, rel=0.05)


def test_the_bytes_of_a_token_are_vllms_own_for_the_tiny_llama(tiny: Seen):
    check_bytes(tiny)


def test_the_sessions_that_fit_are_vllms_own_for_the_tiny_llama(tiny: Seen):
    check_concurrency(tiny)


def test_the_sessions_that_fit_are_vllms_own_where_layers_have_windows(sliding: Seen):
    check_concurrency(sliding)


@pytest.mark.models
def test_the_bytes_of_a_token_are_vllms_own_for_smollm2(smollm: Seen):
    check_bytes(smollm)


@pytest.mark.models
def test_the_sessions_that_fit_are_vllms_own_for_smollm2(smollm: Seen):
    check_concurrency(smollm)


# ------------------------------------------------------------------ the classes that vLLM counts with


def vllm_config(max_model_len: int, in_flight: int) -> Any:
    """Return what vLLM's classes read of its configuration."""
    return SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=max_model_len),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        max_in_flight_tokens=in_flight,
    )


@pytest.mark.parametrize("config", [QWEN_3_8B, LLAMA_3_70B])
@pytest.mark.parametrize("gpu_count", [1, 2, 8])
def test_full_attention_is_counted_as_vllm_does(require_vllm, config: dict[str, Any], gpu_count: int):
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    shape = read_shape(config)
    spec = FullAttentionSpec(
        block_size=16, num_kv_heads=max(1, shape.kv_heads // gpu_count), head_size=shape.head_dim, dtype=torch.bfloat16
    )
    ours = kv_bytes(shape, 5000, gpu_count=gpu_count, block_tokens=16)
    assert ours.value == shape.layers * spec.max_memory_usage_bytes(vllm_config(5000, 2048))


def test_latent_attention_is_counted_as_vllm_does(require_vllm):
    import torch
    from vllm.v1.kv_cache_interface import MLAAttentionSpec

    shape = read_shape(DEEPSEEK_V3)
    spec = MLAAttentionSpec(block_size=16, num_kv_heads=1, head_size=576, dtype=torch.bfloat16)
    ours = kv_bytes(shape, 4096, gpu_count=8, block_tokens=16)
    assert ours.value == shape.layers * spec.max_memory_usage_bytes(vllm_config(4096, 2048))


@pytest.mark.parametrize("tokens", [500, 5000, 100_000])
def test_a_window_is_counted_as_vllm_does(require_vllm, tokens: int):
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

    shape = read_shape(GEMMA_3_12B)
    common = {"block_size": 16, "num_kv_heads": 8, "head_size": 256, "dtype": torch.bfloat16}
    config = vllm_config(tokens, 4096)
    full = FullAttentionSpec(**common).max_memory_usage_bytes(config)
    window = SlidingWindowSpec(**common, sliding_window=1024, dcp_sharded=False).max_memory_usage_bytes(config)
    ours = kv_bytes(shape, tokens, batched_tokens=4096, block_tokens=16)
    assert ours.value == 8 * full + 40 * window


def test_the_weights_of_the_tiny_llama_are_its_file(tiny_llama: Path):
    size = (tiny_llama / "model.safetensors").stat().st_size
    shape = read_shape(json.loads((tiny_llama / "config.json").read_text()))
    assert weights_bytes(shape).value == pytest.approx(size, rel=0.01)  # the file has a header too
