"""What `VLLM(...)` accepts and refuses, without vLLM; and whether its table is that of the installed release."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flashkit import VLLM, Weights, gpu_endpoint
from flashkit.engines.vllm import VllmOptions
from flashkit.engines.vllm_checks import known_options
from flashkit.errors import ConfigurationError, DefinitionError
from flashkit.spec import EndpointSpec
from flashkit.vllm_options import OPTIONS, RELEASES
from flashkit.worker.engines import vllm_releases

WEIGHTS = Weights("org/model")
SCRIPT = Path(__file__).parents[2] / "scripts" / "vllm_options.py"


def arguments(**options) -> dict:
    return dict(VLLM(WEIGHTS, **options).options["arguments"])


def refusal(**options) -> str:
    with pytest.raises(DefinitionError) as caught:
        VLLM(WEIGHTS, **options)
    return caught.value.report.render()


def test_every_option_of_vllm_is_accepted_by_its_own_name():
    given = {
        "max_model_len": 8192,
        "quantization": "awq",
        "enable_prefix_caching": True,
        "gpu_memory_utilization": 0.85,
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 3},
        "logits_processors": ["my.module:Processor"],
        "chat_template": "{{ messages }}",
        "dtype": "bfloat16",
    }
    assert arguments(**given) == given


@pytest.mark.parametrize("quantization", ["awq", "gptq", "fp8", "compressed-tensors"])
def test_the_quantisations_are_known(quantization):
    assert arguments(quantization=quantization) == {"quantization": quantization}


def test_an_option_that_is_none_is_not_given():
    assert arguments(quantization=None, max_model_len=None) == {}


def test_a_declaration_is_plain_json_and_reads_back():
    engine = VLLM(
        Weights("org/model", revision="main"),
        served_model_name=["org/model", "short"],
        lora_modules={"polite": Weights("org/lora"), "terse": Path("/models/terse")},
        warmup=["chat", {"prompt": "Hello"}],
        warmup_seconds=30,
        max_model_len="32k",
    )
    assert json.loads(json.dumps(engine.options)) == engine.options
    options = VllmOptions.from_json(engine.options)
    assert options.to_json() == engine.options
    assert options.lora_modules == {"polite": Weights("org/lora"), "terse": "/models/terse"}
    assert (options.served_model_name, options.warmup) == (("org/model", "short"), ("chat", {"prompt": "Hello"}))


def test_a_model_is_served_by_the_name_of_its_weights():
    assert VLLM(WEIGHTS).options["served_model_name"] == ["org/model"]
    assert VLLM(WEIGHTS, served_model_name="m").options["served_model_name"] == ["m"]


@pytest.mark.parametrize(("sessions", "seats"), [(1, 2), (3, 5), (5, 8), (10, 16), (20, 32), (64, 96), (100, 152)])
def test_expected_sessions_give_one_and_a_half_to_two_times_as_many_seats(sessions, seats):
    assert arguments(expected_sessions=sessions) == {"max_num_seqs": seats}
    assert 1.5 * sessions <= seats <= 2 * sessions


def test_max_num_seqs_wins_over_expected_sessions():
    assert arguments(expected_sessions=10, max_num_seqs=3) == {"max_num_seqs": 3}


def test_a_tool_call_parser_switches_tool_calls_on():
    assert arguments(tool_call_parser="hermes") == {"tool_call_parser": "hermes", "enable_auto_tool_choice": True}
    assert arguments(tool_call_parser="hermes", enable_auto_tool_choice=False)["enable_auto_tool_choice"] is False


def test_adapters_switch_lora_on():
    assert arguments(lora_modules={"polite": Weights("org/lora")}) == {"enable_lora": True}


def test_a_base_url_stands_in_for_the_engine():
    options = VLLM(WEIGHTS, base_url="http://127.0.0.1:8000/v1/", max_model_len=512).options
    assert (options["mode"], options["base_url"]) == ("remote", "http://127.0.0.1:8000/v1")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_modle_len": 1}, "did you mean 'max_model_len'?"),
        ({"xyzzy": 1}, "VLLM has no option 'xyzzy'"),
        ({"model": "x"}, "the model is the first argument"),
        ({"revision": "x"}, "the revision belongs to the weights"),
        ({"hf_token": "x"}, "set HF_TOKEN"),
        ({"port": 8000}, "a worker has neither"),
        ({"max_model_len": 0}, "leaves no room for a token"),
        ({"max_model_len": 1.5}, "has the wrong type"),
        ({"gpu_memory_utilization": 0}, "not a share of the GPU's memory"),
        ({"gpu_memory_utilization": 90}, "not a share of the GPU's memory"),
        ({"gpu_memory_utilization": "most"}, "has the wrong type"),
        ({"max_num_seqs": 0}, "it is at least 1"),
        ({"enforce_eager": "yes"}, "it takes True or False"),
        ({"max_loras": True}, "it takes a whole number"),
        ({"compilation_config": 3}, "it takes an object of JSON values"),
        ({"cudagraph_capture_sizes": [1, "2"]}, "it takes a list of whole numbers"),
        ({"quantization": "awk"}, "did you mean 'awq'?"),
        ({"dtype": "flaot16"}, "did you mean 'float16'?"),
        ({"tool_call_parser": "hermess"}, "did you mean 'hermes'?"),
        ({"reasoning_parser": "deepseek"}, "is not one of vLLM's"),
        ({"enable_auto_tool_choice": True}, "add tool_call_parser"),
        ({"max_model_len": 4096, "max_num_batched_tokens": 512, "enable_chunked_prefill": False}, "is below"),
        ({"speculative_config": {"model": object()}}, "is not a JSON value"),
        ({"gpu_memory_utilization": float("nan")}, "is not a JSON value"),
        ({"served_model_name": []}, "is not a name"),
        ({"expected_sessions": 0}, "is not a whole number of at least 1"),
        ({"lora_modules": ["x"]}, "is not a mapping"),
        ({"lora_modules": {"org/model": Weights("org/lora")}}, "cannot have that name"),
        ({"lora_modules": {"x": 3}}, "is not an adapter"),
        ({"lora_modules": {"x": "/x"}, "enable_lora": False}, "cannot have lora_modules"),
        ({"mode": "fast"}, "it is 'in_process' or 'serve'"),
        ({"base_url": "somewhere"}, "is not an address"),
        ({"base_url": "http://127.0.0.1/v1", "mode": "serve"}, "asks for two servers"),
        ({"warmup": "chat"}, "is not a list"),
        ({"warmup": ["caht"]}, "did you mean 'chat'?"),
        ({"warmup_seconds": 0}, "is not a time"),
    ],
)
def test_what_cannot_work_is_refused_at_definition(options, said):
    assert said in refusal(**options)


def test_something_else_than_weights_is_refused():
    with pytest.raises(DefinitionError, match="has no weights"):
        VLLM("org/model")  # type: ignore[arg-type]


def test_a_parser_that_a_plugin_brings_is_accepted():
    given = arguments(tool_call_parser="mine", tool_parser_plugin="/app/mine.py")
    assert given["tool_call_parser"] == "mine"


def test_the_engine_is_spread_over_the_endpoints_gpus():
    def engine(gpu_count: int, **options):
        endpoint = gpu_endpoint(name="llm", gpu="A100", gpu_count=gpu_count, engine=VLLM(WEIGHTS, **options))
        return endpoint.spec.engine.options["arguments"]

    assert engine(1) == {}
    assert engine(4) == {"tensor_parallel_size": 4}
    assert engine(4, pipeline_parallel_size=2) == {"pipeline_parallel_size": 2, "tensor_parallel_size": 2}
    assert engine(2, tensor_parallel_size=2) == {"tensor_parallel_size": 2}


@pytest.mark.parametrize(
    "options", [{"tensor_parallel_size": 4}, {"tensor_parallel_size": 1}, {"data_parallel_size": 3}]
)
def test_a_contradiction_between_the_engine_and_the_gpus_is_refused(options):
    with pytest.raises(DefinitionError, match="but gpu_count=2 gives a worker another number") as caught:
        gpu_endpoint(name="llm", gpu="A100", gpu_count=2, engine=VLLM(WEIGHTS, **options))
    assert caught.value.report.where.startswith("test_vllm_options.py:")


def test_the_seats_of_the_engine_are_the_jobs_of_the_worker():
    endpoint = gpu_endpoint(name="llm", gpu="A100", engine=VLLM(WEIGHTS, expected_sessions=100))
    assert endpoint.spec.concurrency == 152
    assert EndpointSpec.from_dict(json.loads(json.dumps(endpoint.spec.to_dict()))) == endpoint.spec
    assert gpu_endpoint(name="llm", gpu="A100", engine=VLLM(WEIGHTS)).spec.concurrency == 64


def test_the_known_options_are_those_that_a_worker_can_have():
    known = known_options()
    assert {"max_model_len", "tool_call_parser", "expected_sessions"} <= set(known)
    assert not {"port", "model", "api_key"} & set(known)


def test_the_table_has_every_release_that_is_served_in_process():
    assert set(RELEASES) == set(vllm_releases.RELEASES)
    assert len(OPTIONS) > 200


def test_an_unknown_release_is_refused_with_the_way_out():
    with pytest.raises(ConfigurationError, match=r"vLLM 0\.9\.2 is not known") as caught:
        vllm_releases.find_release("0.9.2")
    assert 'mode="serve"' in caught.value.report.hint
    with pytest.raises(ConfigurationError, match="this worker has no vLLM"):
        vllm_releases.find_release(None)


def test_entry_points_that_have_moved_are_said_to_have(monkeypatch):
    release = vllm_releases.Release("0.0", *["json:nothing_of_this_name"] * 5)
    with pytest.raises(ConfigurationError, match="has no nothing_of_this_name in json"):
        release.entry_points()


def test_the_table_is_that_of_the_installed_vllm(require_vllm):
    environ = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, str(SCRIPT), "--check"]
    done = subprocess.run(command, check=False, env=environ, capture_output=True, text=True, timeout=110)
    assert (done.returncode, done.stdout.strip().splitlines()[-1:]) == (0, ["{}"]), done.stderr[-2000:]
