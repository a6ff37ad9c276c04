"""`flashkit plan` as people type it: models, apps, fleets and cost, and what is refused with which words."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from flashkit.cli import run_command_line
from flashkit.cli.plan_models import read_model_folder
from flashkit.cli.plan_prices import prices_of
from flashkit.errors import ConfigurationError
from tests.plan.configs import DEEPSEEK_V3, GEMMA_3_12B, LLAMA_3_70B, MINI_LM, QWEN_3_8B

APP = """
from flashkit import VLLM, Weights, cpu_endpoint, gpu_endpoint, orchestrator_endpoint

llm = gpu_endpoint(
    name="llm", gpu="A40", workers=(1, 3), engine=VLLM(Weights("tests/qwen"), max_model_len=8192, expected_sessions=8)
)
large = gpu_endpoint(name="large", gpu="A40", engine=VLLM(Weights("tests/llama")))
lost = gpu_endpoint(name="lost", gpu="A40", engine=VLLM(Weights("tests/nowhere")))


@cpu_endpoint(name="tool", cpu="cpu5c-2-4")
def tool(text: str) -> str:
    return text


@orchestrator_endpoint(name="agent", cpu="cpu5c-2-4")
async def agent(session) -> str:
    return await session.call(tool, "hello")
"""


class Shown:
    """What a command printed, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def data(self) -> dict:
        return json.loads(self.out)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Run `flashkit plan` in a folder with models and an app, without a hub."""
    for name, config in {
        "qwen": QWEN_3_8B, "llama": LLAMA_3_70B, "deepseek": DEEPSEEK_V3, "gemma": GEMMA_3_12B, "minilm": MINI_LM,
        "empty": {},
    }.items():  # fmt: skip
        folder = tmp_path / "models" / "tests" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    for variable in ("FLASHKIT_WEIGHTS_DIR", "HF_HUB_CACHE", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "models"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("flashkit.worker.weights.offline._ours", set())  # nor did an engine of another test say so
    monkeypatch.setenv("FLASHKIT_WEIGHTS_CACHE", str(tmp_path / "cache"))

    def run(*words: str) -> Shown:
        capfd.readouterr()
        code = run_command_line(["plan", *words])
        return Shown(code, *capfd.readouterr())

    return run


@pytest.mark.parametrize("target", ["tests/qwen", "models/tests/qwen", "models/tests/qwen/config.json"])
def test_a_model_is_a_name_a_folder_or_a_config(plan, target: str):
    shown = plan(target)
    assert shown.code == 0, shown.err
    assert "8.19 billion parameters, 8 sessions of 4,096 tokens" in shown.out
    assert "RTX A6000" in shown.out


def test_options_may_come_before_the_model_and_size_may_be_written_out(plan):
    first, second = (
        plan("--json", "--sessions", "20", "tests/qwen"),
        plan("size", "tests/qwen", "--json", "--sessions", "20"),
    )
    assert first.data == second.data
    assert first.data["sessions"] == 20


def test_json_has_every_figure_with_formula_and_source(plan):
    data = plan("tests/deepseek", "--json").data
    assert data["kv_per_token"] == {
        "value": 61 * 576 * 2, "unit": "bytes per token", "formula": "61 layers x 576 latent x 2 bytes", "source": "",
    }  # fmt: skip
    assert data["tensor_parallel_degrees"] == [1, 2, 4, 8]
    best = data["placements"][0]
    assert (best["gpu_count"], data["best"].split("x ")[0]) == (8, "8")
    assert "flashkit's catalogue" in best["usd_per_hour"]["source"]
    assert all(each["reason"] for each in data["misfits"])


def test_explain_shows_the_formula_and_source_of_every_figure(plan):
    shown = plan("tests/llama", "--explain")
    assert "2 x 80 layers x 8 KV heads x 128 head dim x 2 bytes" in shown.out
    assert "NVIDIA's data sheets" in shown.out
    assert "fitted to start-up logs of vLLM" in shown.out


def test_all_shows_what_does_not_fit_and_why(plan):
    shown = plan("tests/llama", "--all")
    assert "does not fit: L4: weights and overhead need" in shown.out


def test_an_embedding_model_has_no_sessions(plan):
    shown = plan("tests/minilm")
    assert "for embedding" in shown.out
    assert "KV cache" not in shown.out
    assert "holds it" in shown.out


def test_gpus_and_their_number_can_be_chosen(plan):
    data = plan("tests/qwen", "--json", "--gpu", "A100", "--gpu-count", "2").data
    assert {(each["gpu"], each["gpu_count"]) for each in data["placements"]} == {
        ("NVIDIA A100 80GB PCIe", 2), ("NVIDIA A100-SXM4-80GB", 2),
    }  # fmt: skip


def test_a_plot_of_a_model_is_an_svg(plan, tmp_path: Path):
    assert plan("tests/gemma", "--plot", "sessions.svg").code == 0
    root = ElementTree.fromstring((tmp_path / "sessions.svg").read_text())
    assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) > 2


def test_an_app_is_planned_endpoint_by_endpoint(plan):
    shown = plan("app.py")
    assert shown.code == 0, shown.err
    assert "A40: does not fit" in shown.out
    assert "does not fit as written: weights and overhead need" in shown.out
    assert "the model tests/nowhere is not on this machine" in shown.out
    data = {each["name"]: each for each in plan(".", "--json").data["endpoints"]}
    assert data["llm"]["model"]["context_tokens"] == 8192
    assert data["llm"]["as_written"]["planned"]["value"] >= 8
    assert data["lost"]["problem"].endswith("HF_HUB_OFFLINE is set")
    assert {name for name, each in data.items() if each["interruptible"]["allowed"]} == {"agent"}


def test_an_apps_figures_are_explained_too(plan):
    shown = plan("app.py", "--explain", "--all", "--traffic", "llm=100:4")
    assert "KV cache of a session: 1.21 GB (147,456 bytes per token x 8,192 tokens)" in shown.out
    assert "workers.min: $0.864 per hour (1 worker, always there, x $0.864 an hour" in shown.out
    assert "interruptible machines: yes, as its sessions are checkpointed" in shown.out
    assert "cold starts: " in shown.out
    assert "USD/M tokens" in shown.out


def test_an_app_without_endpoints_is_refused(plan, tmp_path: Path):
    (tmp_path / "nothing.py").write_text("x = 1\n")
    shown = plan("nothing.py")
    assert (shown.code, "nothing.py defines no endpoint" in shown.err) == (3, True)


def test_a_model_behind_a_base_url_and_a_gpu_without_a_price_are_planned_as_far_as_they_go(plan, tmp_path: Path):
    (tmp_path / "other.py").write_text(
        "from flashkit import VLLM, Weights, gpu_endpoint\n"
        'far = gpu_endpoint(name="far", gpu="L4", engine=VLLM(Weights("a/b"), base_url="http://127.0.0.1:1"))\n'
        'new = gpu_endpoint(name="new", gpu="RTX 5090", workers=(1, 1), engine=VLLM(Weights("tests/qwen")))\n'
        'big = gpu_endpoint(name="big", gpu="L4", engine=VLLM(Weights("tests/some-7B-AWQ")))\n'
    )
    shown = plan("other.py", "--json")
    far, new, big = shown.data["endpoints"]
    assert (far["model"], far["problem"]) == (None, None)
    assert new["floor"] is None
    assert big["problem"].endswith("by its name the weights are 3.64 GB (7 billion parameters x 4.16 bits of awq / 8)")
    assert "no price known" in plan("other.py").out


def test_traffic_of_an_app_is_for_one_endpoint_or_for_all(plan):
    data = plan("app.py", "--json", "--traffic", "100:4", "--traffic", "llm=20000:2").data["endpoints"]
    costs = {each["name"]: each["cost"] for each in data}
    assert costs["tool"] is None  # no price is known
    assert costs["llm"]["per_job"]["value"] < costs["large"]["per_job"]["value"]
    assert "cheapest for this traffic" in plan("app.py", "--traffic", "100:4").out


@pytest.mark.parametrize(
    ("words", "told", "hint"),
    [
        (["tests/quen"], "the model tests/quen is not on this machine", "did you mean tests/qwen?"),
        (["simulat"], "there is no file or folder 'simulat'", "did you mean flashkit plan simulate?"),
        (["nothing.py"], "there is no file nothing.py", "name a file that defines endpoints"),
        (["models"], "models holds neither a model (config.json) nor an app", "name a model's folder"),
        (["tests/empty"], "tests/empty: config.json has no num_hidden_layers", "config.json of a language model"),
        (["tests/llama", "--gpu", "L4", "--gpu-count", "1"], "tests/llama fits no GPU that may be used", "quantise it"),
        (["tests/qwen", "--context", "99999"], "was made for 40,960 tokens", "--context 40960"),
        (["tests/qwen", "--gpu", "A1000"], "--gpu='A1000' is not known", "valid names"),
        (["tests/qwen", "--gpu-count", "3"], "cannot be split over 3 GPUs", "--gpu-count 1, 2, 4, 8"),
        (["tests/qwen", "--quantization", "x"], "quantization='x' is not known", "try fp8"),
        (["tests/qwen", "--plot", "x.png"], "--plot=x.png is not an SVG file", "--plot x.svg"),
        (["tests/qwen", "--plot", "no/x.svg"], "no/x.svg cannot be written", "name another file"),
        (["tests/qwen", "--prices", "nowhere"], "--target 'nowhere' is no target", "write runpod, local"),
        (["fleet", "0"], "0 interactions at the same time is none", "give at least 1"),
        (["fleet", "10", "--tier", "L40S"], "--tier 'L40S' is not GPU:PERCENT:PER_GPU:USD_PER_HOUR", "L40S:70:50:0.72"),
        (["fleet", "10", "--tier", "L40S:70:50:0.72"], "shares are 70.0000% together", "give each tier its share"),
        (["cost", "--gpu", "L40S", "--jobs-per-day", "0", "--seconds-per-job", "4"], "jobs_per_day=0 is no traffic",
         "--jobs-per-day"),
        (["cost", "--gpu", "L40S", "--jobs-per-day", "-9", "--seconds-per-job", "4"], "jobs_per_day=-9", "above 0"),
        (["cost", "--gpu", "L400", "--jobs-per-day", "9", "--seconds-per-job", "4"], "--gpu='L400' is not known",
         "L40S"),
        (["cost", "--gpu", "RTX 5090", "--jobs-per-day", "9", "--seconds-per-job", "4"], "no source gives a price",
         "--flex-price"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_refused_with_what_to_do(plan, words: list[str], told: str, hint: str):
    shown = plan(*words)
    assert shown.code == 2
    assert told in shown.err
    assert hint in shown.err
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["tests/qwen", "--dtype", "int3"], "'int3' is not one of"),
        (["tests/qwen", "--traffic", "9:9"], "--traffic is for an app"),
        (["tests/qwen", "--sessions", "0"], "0 is not in the range"),
        (["app.py", "--gpu", "A40"], "an app's endpoints name their own GPUs"),
        (["app.py", "--plot", "x.svg"], "--plot draws the plan of a model"),
        (["app.py", "--traffic", "many"], "'many' is not [NAME=]JOBS:SECONDS"),
        (["app.py", "--traffic", "lm=9:9"], "there is no endpoint 'lm'; did you mean llm?"),
    ],
)
def test_options_that_do_not_go_together_are_a_wrong_command_line(plan, words: list[str], told: str):
    shown = plan(*words)
    assert shown.code == 2
    assert told in shown.err


def test_traffic_that_is_none_is_refused_for_an_app_too(plan):
    shown = plan("app.py", "--traffic", "0:4")
    assert (shown.code, "jobs_per_day=0 is no traffic" in shown.err) == (2, True)


def test_a_config_that_is_no_json_is_refused_with_the_file(plan, tmp_path: Path):
    for content, told in (("{", "is not JSON"), ("[]", "holds no JSON object"), ("[" * 100_000, "is not JSON")):
        (tmp_path / "broken.json").write_text(content)
        shown = plan("broken.json")
        assert (shown.code, told in shown.err) == (2, True), shown.err


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="only Linux has a file that nobody can read")
def test_a_config_that_cannot_be_read_is_refused(plan):
    assert "/proc/self/mem cannot be read: Input/output error" in plan("/proc/self/mem").err


def test_the_files_of_a_model_tell_its_size(plan, tmp_path: Path):
    folder = tmp_path / "models" / "tests" / "qwen"
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    (folder / "pytorch_model.bin").write_bytes(b"x" * 5000)
    assert plan("tests/qwen", "--json").data["on_disk"]["value"] == 1000
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 16_381_470_720}}))
    assert plan("tests/qwen", "--json").data["on_disk"]["value"] == 16_381_470_720


def test_the_platforms_own_prices_can_be_taken(plan):
    data = plan("tests/qwen", "--json", "--prices", "local").data
    assert "/v2/catalog/gpus, 20" in data["placements"][0]["usd_per_hour"]["source"]


def test_a_catalogue_without_prices_is_refused():
    with pytest.raises(ConfigurationError, match="there has no prices of GPUs that flashkit knows"):
        prices_of([{"id": "NVIDIA L4", "price": {"serverless": 0}}, {"id": "other", "price": None}], source="there")


def test_a_folder_without_a_config_is_no_model(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"there is no config.json in"):
        read_model_folder(tmp_path)


def test_the_reference_fleet_is_shown_to_the_cent(plan):
    shown = plan("fleet", "1000", "10000", "100000", "--explain", "--pools")
    for text in ("16.75", "148.71", "1,480.86", "1,784", "$0.0149", "$0.0000124", "sharing A100 saves"):
        assert text in shown.out
    fleets = plan("fleet", "10000", "--json").data["fleets"]
    assert fleets[0]["usd_per_hour"]["value"] == 148.71


def test_tiers_of_ones_own_make_another_fleet(plan, tmp_path: Path):
    shown = plan("fleet", "100", "--tier", "A40:60%:10:$1", "--tier", "A100:40:20:2", "--json", "--plot", "fleet.svg")
    fleet = shown.data["fleets"][0]
    assert [(each["gpu"], each["gpus"]) for each in fleet["tiers"]] == [("A40", 6), ("A100", 2)]
    assert fleet["usd_per_hour"]["value"] == 10
    assert fleet["usd_per_hour"]["source"] == "the tiers that were given"
    assert (tmp_path / "fleet.svg").read_text().startswith("<svg")


def test_cost_says_what_is_cheapest_and_from_when_on(plan, tmp_path: Path):
    words = ["cost", "--gpu", "L40S", "--jobs-per-day", "2000", "--seconds-per-job", "4"]
    shown = plan(*words, "--plot", "cost.svg")
    assert "an active worker is cheaper from" in shown.out
    assert "70% of the time" in shown.out
    assert (tmp_path / "cost.svg").read_text().count("<polyline") == 3
    data = plan(*words, "--json", "--pod-price", "3").data
    assert data["cheapest"] == "flex"
    given = plan(*words, "--json", "--flex-price", "0.001", "--active-price", "0.0001", "--pod-price", "1").data
    assert given["cheapest"] == "active"
    assert given["flex"]["source"] == given["active"]["source"] == given["pod"]["source"] == "given"


def test_help_lists_the_commands(plan):
    shown = plan("--help")
    for name in ("size", "fleet", "cost", "simulate"):
        assert f"\n  {name} " in shown.out
