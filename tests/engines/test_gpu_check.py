"""scripts/gpu_check: what it says without an accelerator, and that its measurements run."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def gpu_check(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "scripts" / "gpu_check"), *options], capture_output=True, text=True, check=False, timeout=280
    )


@pytest.mark.timeout(300)
def test_without_an_accelerator_it_says_skipped_and_is_content():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is an accelerator")
    result = gpu_check()
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("skipped: ")
    assert json.loads(result.stdout.splitlines()[-1])["name"] == "gpu_check"


@pytest.mark.models
@pytest.mark.timeout(300)
def test_its_measurements_run_on_a_processor_too():
    if not (ROOT / ".flashkit" / "models" / "sentence-transformers").is_dir():
        pytest.skip("the model is not there: scripts/fetch_models")
    result = gpu_check("--on-cpu", "--quick", "--no-vllm")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["ok"]
    assert found["embedding"]["default"]["batches"][0]["tokens_per_s"] > 0
