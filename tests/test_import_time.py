"""`import flashkit` and defining endpoints load nothing heavy: proved in fresh interpreters."""

import json
import subprocess
import sys

import pytest

HEAVY = (
    "runpod", "pydantic", "aiohttp", "redis", "boto3", "fastapi", "starlette", "click", "orjson", "numpy", "torch",
    "uvicorn", "rich", "sqlite3", "opentelemetry", "prometheus_client",
)  # fmt: skip

DEFINE = {
    "cpu": "@flashkit.cpu_endpoint()\nasync def tool(text: str) -> int: ...",
    "gpu function": "@flashkit.gpu_endpoint(gpu='A100')\ndef model(text: str) -> str: ...",
    "gpu class": "@flashkit.gpu_endpoint(gpu='A100')\nclass Model:\n    def run(self, text: str) -> str: ...",
    "embedding": "@flashkit.embedding_endpoint(gpu='L4', weights=flashkit.Weights('a/b'))\n"
    "async def vectors(texts: list[str], embed) -> list: ...",
    "orchestrator": "@flashkit.orchestrator_endpoint()\nasync def agent(session, question: str) -> str: ...",
}


def _loaded_by(code: str) -> set[str]:
    script = f"import sys, json\nimport flashkit\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = {name.partition(".")[0] for name in json.loads(result.stdout)}
    return modules & set(HEAVY)


def test_importing_flashkit_loads_no_heavy_module():
    assert _loaded_by("") == set()


def test_importing_flashkit_loads_none_of_its_own_modules():
    script = "import sys, flashkit; print([name for name in sys.modules if name.startswith('flashkit.')])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("what", DEFINE)
def test_defining_an_endpoint_loads_no_heavy_module(what):
    assert _loaded_by(DEFINE[what]) == set()


def test_defining_all_kinds_and_calling_them_loads_no_heavy_module():
    code = "\n".join(DEFINE.values()) + "\nassert model('a') is None\nassert repr(agent) and agent.spec.to_dict()"
    assert _loaded_by(code) == set()


def test_a_refused_option_loads_no_heavy_module():
    code = "try:\n    flashkit.gpu_endpoint(gpu='A10O')\nexcept flashkit.DefinitionError as exc:\n    error = str(exc)"
    assert _loaded_by(code + "\nassert 'A100' in error") == set()


def test_importing_flashkit_reads_no_environment():
    script = (
        "import os\n"
        "class Refuse(dict):\n"
        "    def __getitem__(self, key): raise AssertionError(key)\n"
        "    get = __getitem__\n"
        "os.environ = Refuse()\n"
        "import flashkit, flashkit.decorators, flashkit.settings, flashkit.endpoint\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
