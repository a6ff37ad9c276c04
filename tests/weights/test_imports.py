"""What finding weights costs a worker whose image brings them: no client library, no network."""

import json
import subprocess
import sys

from tests.weights.conftest import MODEL, write_model

HEAVY = ("huggingface_hub", "boto3", "botocore", "httpx", "httpx2", "requests", "rich", "torch", "numpy", "ssl")
SCRIPT = """
import json, sys
from flashkit.settings import Settings
from flashkit.spec import Weights
from flashkit.worker.weights import resolve_weights
resolve_weights(Weights("org/model"), Settings.from_environment())
print(json.dumps(sorted(sys.modules)))
"""


def test_weights_in_the_image_are_found_without_any_client_library(tmp_path):
    write_model(tmp_path / "org/model")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True,
        env={"FLASHKIT_WEIGHTS_DIR": str(tmp_path), "RUNPOD_ENDPOINT_BASE_URL": "http://127.0.0.1:9/v2"},
    )  # fmt: skip
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert loaded & set(HEAVY) == set()


def test_without_huggingface_hub_the_error_names_the_extra(tmp_path):
    code = "import sys; sys.modules['huggingface_hub'] = None\n" + SCRIPT
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={"HOME": str(tmp_path), "RUNPOD_ENDPOINT_BASE_URL": "http://127.0.0.1:9/v2"},
    )  # fmt: skip
    assert "the package huggingface-hub is not installed" in done.stderr
    assert "pip install 'flashkit-serverless[hub]'" in done.stderr


def test_pull_works_in_an_image_that_has_no_rich(hub, tmp_path):
    hub.add("org/model", MODEL)
    code = "import sys; sys.modules['rich'] = None\nfrom flashkit.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "weights", "pull", "org/model", "--to", "models"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={"HOME": str(tmp_path), "HF_ENDPOINT": hub.url},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/models/org/model\n")
