"""What vLLM is told on a machine without a GPU."""

from __future__ import annotations

import json
import logging
import os
import shutil

import pytest

from flashkit import VLLM
from flashkit.settings import Settings
from flashkit.spec import Weights
from flashkit.worker.engines import vllm_arguments
from flashkit.worker.engines.engine import load_engine
from flashkit.worker.engines.vllm_arguments import cpu_defaults
from flashkit.worker.machine import has_bfloat16
from flashkit.worker.phases import Phases


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags : fpu avx2\nflags : fpu avx512_bf16\n", False),
        ("processor : 0\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags : amx_tile amx_bf16", True),
        ("flags :", False),
        ("processor : 0\nFeatures : fp asimd bf16\n", None),
        ("", None),
    ],
)
def test_the_instructions_for_bfloat16_are_read_from_the_processors_flags(tmp_path, text, expected):
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    assert has_bfloat16(file) is expected


def test_a_system_without_that_file_does_not_tell(tmp_path):
    assert has_bfloat16(tmp_path / "none") is None


@pytest.fixture
def slow_with_halves(monkeypatch):
    monkeypatch.setattr(vllm_arguments, "has_bfloat16", lambda: False)


@pytest.fixture
def model(tmp_path):
    """Make a folder of weights: `model(torch_dtype="bfloat16")`."""

    def make(*, size: int = 1000, **config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with (tmp_path / "model.safetensors").open("wb") as file:
            os.truncate(file.fileno(), size)
        return tmp_path

    return make


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32", None])
def test_a_model_is_computed_in_float32_where_the_processor_is_slow_with_halves(
    slow_with_halves, model, caplog, name, stored
):
    """One that is stored in float32 too: vLLM would halve it."""
    caplog.set_level(logging.INFO, "flashkit")
    assert cpu_defaults(model(**{name: stored}), {})["dtype"] == "float32"
    assert "the model is computed in float32: this processor has no instructions for bfloat16" in caplog.text


@pytest.mark.parametrize(("free", "half", "whole"), [(8, 1, 2), (16, 2, 4), (24, 3, 4), (64, 4, 4)])
def test_the_cache_has_room_for_as_many_tokens_then_within_4_gb(
    slow_with_halves, model, *, monkeypatch, free, half, whole
):
    monkeypatch.setattr(vllm_arguments, "free_memory", lambda: free << 30)
    assert cpu_defaults(model(dtype="bfloat16"), {})["kv_cache_memory_bytes"] == whole << 30
    assert cpu_defaults(model(dtype="bfloat16"), {"dtype": "bfloat16"})["kv_cache_memory_bytes"] == half << 30


@pytest.mark.parametrize("can", [True, None])
def test_that_is_left_to_vllm_where_the_processor_is_quick_or_unknown(monkeypatch, model, can):
    monkeypatch.setattr(vllm_arguments, "has_bfloat16", lambda: can)
    assert "dtype" not in cpu_defaults(model(dtype="bfloat16"), {})


@pytest.mark.parametrize("given", [{"dtype": "auto"}, {"quantization": "awq"}])
def test_what_is_declared_decides(slow_with_halves, model, caplog, given):
    caplog.set_level(logging.INFO, "flashkit")
    assert "dtype" not in cpu_defaults(model(dtype="bfloat16"), given)
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["quantization_config", "compression_config"])
def test_quantized_weights_are_left_to_vllm(slow_with_halves, model, name):
    assert "dtype" not in cpu_defaults(model(dtype="bfloat16", **{name: {"bits": 4}}), {})


@pytest.mark.parametrize(("size", "given"), [(1 << 40, {}), (1000, {"kv_cache_memory_bytes": 1 << 20}), (3 << 30, {})])
def test_where_the_memory_may_not_do_the_log_says_how_to_be_quicker(
    slow_with_halves, model, *, monkeypatch, caplog, size, given
):
    """Declared bytes of the cache hold half as many tokens in float32, which may be too few to start."""
    caplog.set_level(logging.INFO, "flashkit")
    monkeypatch.setattr(vllm_arguments, "free_memory", lambda: 16 << 30)
    assert "dtype" not in cpu_defaults(model(dtype="bfloat16", size=size), given)
    assert "dtype='float32' would be several times quicker, and take" in caplog.text
    assert f"{2 * size / 1e9:.1f} GB for the weights" in caplog.text


def test_weights_of_any_format_count(slow_with_halves, model):
    folder = model(dtype="bfloat16", size=1 << 40)
    (folder / "parts").mkdir()
    (folder / "model.safetensors").rename(folder / "parts" / "pytorch_model.bin")
    assert "dtype" not in cpu_defaults(folder, {})


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_config_that_cannot_be_read_is_vllms_to_tell(slow_with_halves, model, text):
    folder = model()
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    assert "dtype" not in cpu_defaults(folder, {})


@pytest.mark.parametrize("is_broken", [True, False])
def test_so_are_weights_that_are_not_there(slow_with_halves, model, is_broken):
    folder = model()
    (folder / "model.safetensors").unlink()
    if is_broken:
        (folder / "model.safetensors").symlink_to(folder / "nowhere")
    assert "dtype" not in cpu_defaults(folder, {})


async def test_vllm_computes_in_float32_then(slow_with_halves, require_vllm, tiny_llama, tmp_path):
    folder = tmp_path / "tests" / "halved"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16"}))
    spec = VLLM(Weights("tests/halved"), max_model_len=128, max_num_seqs=2)
    engine = await load_engine(spec, Settings(weights_dir=tmp_path), Phases())
    try:
        assert " as float32 on cpu" in engine.describe()
        answer = await engine.handle().complete("The sky", max_tokens=3, ignore_eos=True)
        assert answer.usage.completion_tokens == 3
    finally:
        await engine.close()
