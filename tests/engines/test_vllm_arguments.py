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
from flashkit.worker.engines.processor import has_bfloat16
from flashkit.worker.engines.vllm_arguments import cpu_defaults
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
@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_halves_are_computed_in_float32_where_the_processor_is_slow_with_them(
    slow_with_halves, model, caplog, name, stored
):
    caplog.set_level(logging.INFO, "flashkit")
    assert cpu_defaults(model(**{name: stored}), {})["dtype"] == "float32"
    assert f"this processor has no instructions for {stored}" in caplog.text


@pytest.mark.parametrize("can", [True, None])
def test_they_are_left_to_vllm_where_it_is_quick_or_unknown(monkeypatch, model, can):
    monkeypatch.setattr(vllm_arguments, "has_bfloat16", lambda: can)
    assert "dtype" not in cpu_defaults(model(dtype="bfloat16"), {})


@pytest.mark.parametrize("given", [{"dtype": "auto"}, {"quantization": "awq"}])
def test_what_is_declared_decides(slow_with_halves, model, given):
    assert "dtype" not in cpu_defaults(model(dtype="bfloat16"), given)


@pytest.mark.parametrize(
    "config", [{"dtype": "float32"}, {}, {"dtype": None}, {"dtype": "bfloat16", "quantization_config": {"bits": 4}}]
)
def test_other_weights_are_left_to_vllm(slow_with_halves, model, config):
    assert "dtype" not in cpu_defaults(model(**config), {})


def test_weights_that_would_take_most_of_the_memory_stay_halves(slow_with_halves, model):
    assert "dtype" not in cpu_defaults(model(dtype="bfloat16", size=1 << 40), {})


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_config_that_cannot_be_read_is_vllms_to_tell(slow_with_halves, tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert "dtype" not in cpu_defaults(tmp_path, {})


async def test_vllm_computes_halves_in_float32_then(slow_with_halves, require_vllm, tiny_llama, tmp_path):
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
