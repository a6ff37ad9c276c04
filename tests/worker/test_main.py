"""`python -m flashkit.worker`: what an app defines, and what is said about one that cannot be used."""

import json
import os
import subprocess
import sys

import pytest

APP = """
from flashkit import NetworkVolume, Weights, cpu_endpoint, embedding_endpoint, gpu_endpoint, orchestrator_endpoint

print("printed while it is imported")

@cpu_endpoint(name="web-retrieval", workers=(0, 10))
async def retrieve(query: str, limit: int = 3) -> list[str]:
    return [query]

@gpu_endpoint(gpu="A100")
class Shouter:
    def run(self, text: str) -> str:
        return text.upper()

@embedding_endpoint(gpu="L4", weights=Weights("a/b"))
async def search(texts: list[str], embed) -> list[float]: ...

@orchestrator_endpoint()
async def agent(session, question: str) -> str: ...

same_again = agent
"""


@pytest.fixture
def app(tmp_path):
    """Write an app file and return its path."""

    def write(text: str, name: str = "my_app.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def _worker(*arguments, cwd=None, **environ):
    command = [sys.executable, "-m", "flashkit.worker", *map(str, arguments)]
    env = {"PATH": os.environ["PATH"], **environ}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False)


def _describe(path, **options):
    result = _worker("--describe", path, **options)
    return json.loads(result.stdout.splitlines()[-1]), result.returncode


def test_an_app_is_described_with_every_endpoint_once(app):
    described, code = _describe(app(APP))
    assert code == 0
    assert described["runpod_handler"] is False
    assert [(item["name"], item["attribute"]) for item in described["endpoints"]] == [
        ("web-retrieval", "retrieve"),
        ("shouter", "Shouter"),
        ("search", "search"),
        ("agent", "agent"),
    ]


def test_a_described_endpoint_has_its_spec_signature_example_and_place(app):
    described, _ = _describe(app(APP))
    retrieve = described["endpoints"][0]
    assert retrieve["spec"]["workers"] == {"min": 0, "max": 10}
    assert retrieve["signature"] == "(query: str, limit: int = 3)"
    assert retrieve["example"] == {"query": "text"}
    assert retrieve["where"] == "my_app.py:6"


def test_an_app_can_be_named_as_a_module_of_the_current_folder(app):
    path = app(APP)
    described, code = _describe("my_app", cwd=path.parent)
    assert (code, len(described["endpoints"])) == (0, 4)


@pytest.mark.parametrize(
    "name", ["queue.py", "types.py", "my-app.py", "app.v2.py", "json.py", "flashkit.py", "main.py"]
)
def test_an_app_may_have_the_name_of_another_module(app, name):
    if name in {"json.py", "types.py", "queue.py", "flashkit.py"}:  # as with `python NAME.py`, its folder comes first
        path = app("from flashkit_app import *", name)
        path.with_name("flashkit_app.py").write_text(APP)
    else:
        path = app(APP, name)
    described, code = _describe(path)
    assert (code, len(described["endpoints"])) == (0, 4)


def test_an_app_imports_modules_of_its_own_folder(app):
    app("from flashkit import cpu_endpoint\n@cpu_endpoint()\ndef tool(): ...", "tools.py")
    described, _ = _describe(app("from tools import tool\nimport my_app\nassert my_app.tool is tool"))
    assert [item["name"] for item in described["endpoints"]] == ["tool"]


def test_objects_that_break_when_they_are_looked_at_do_not_matter(app):
    text = APP + (
        "class Proxy:\n"
        "    def __getattr__(self, name): raise RuntimeError('outside of a request')\n"
        "    definition = property(lambda self: 1 / 0)\n"
        "proxy = Proxy()\n"
        "from unittest.mock import MagicMock\n"
        "mock = MagicMock()\n"
    )
    assert len(_describe(app(text))[0]["endpoints"]) == 4


def test_an_app_without_endpoints_is_described_as_empty(app):
    described, code = _describe(app("x = 1"))
    assert (described["endpoints"], described["runpod_handler"], code) == ([], False, 0)


@pytest.mark.parametrize(
    "call",
    [
        "import runpod\nrunpod.serverless.start({'handler': print})",
        "from runpod import serverless\nserverless.start({})",
    ],
)
def test_a_plain_runpod_handler_is_recognised_without_running_it(app, call):
    described, code = _describe(app(f"raise SystemExit('it ran')\n{call}"))
    assert (described, code) == ({"endpoints": [], "runpod_handler": True}, 0)


BROKEN = {
    "a missing module": ("import nothing_like_it", "ModuleNotFoundError", "No module named 'nothing_like_it'", 1),
    "an exception": ("\ndef f():\n    return {}['x']\nf()", "KeyError", "'x'", 3),
    "an exit": ("import sys\nsys.exit('no key')", "SystemExit", "no key", 2),
    "a syntax error": ("x = 1\ny = (\n", "SyntaxError", "'(' was never closed", 2),
    "an unknown option": (
        "from flashkit import cpu_endpoint\n\ncpu_endpoint(nmae='x')",
        "DefinitionError",
        "no option 'nmae'; did you mean 'name'?",
        3,
    ),
    "an unknown option of an engine": (
        "from flashkit import Embedding, Weights\n\nEmbedding(Weights('a/b'), poling='mean')",
        "DefinitionError",
        "did you mean 'pooling'",
        3,
    ),
    "an unknown GPU": (
        "from flashkit import gpu_endpoint\n@gpu_endpoint(gpu='A10O')\ndef f(): ...",
        "DefinitionError",
        "did you mean 'A100'",
        2,
    ),
    "a type that is not there": (
        "from __future__ import annotations\nfrom flashkit import cpu_endpoint\n@cpu_endpoint()\ndef f(x: Page): ...",
        "DefinitionError",
        "'Page', which is not defined",
        3,
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_an_app_that_does_not_import_is_reported_with_the_users_line(app, what):
    text, type_name, message, line = BROKEN[what]
    report, code = _describe(app(text))
    assert code == 3
    assert report["type"] == type_name
    assert message in report["message"]
    assert report["where"].partition(" ")[0] == f"my_app.py:{line}"
    traceback = report.get("details", {}).get("traceback", "")
    assert bool(traceback) == (type_name != "DefinitionError"), "which says by itself what is wrong, and where"
    assert "flashkit/worker" not in traceback.partition("\n")[2].partition("\n")[0]


def test_a_file_in_another_encoding_is_read_as_python_reads_it(app):
    path = app("")
    path.write_bytes(b"# -*- coding: latin-1 -*-\nname = '\xe4'\n")
    assert _describe(path)[1] == 0


def test_a_file_or_module_that_is_not_there_is_reported(tmp_path):
    for name in ("nothing.py", "nothing", "nothing.inside"):
        report, code = _describe(name, cwd=tmp_path)
        assert code == 3
        assert report["type"] == "ConfigurationError"
        assert repr(name) in report["message"]


def test_a_module_with_a_broken_import_is_not_called_missing(app):
    path = app("import nothing_like_it")
    report, _ = _describe("my_app", cwd=path.parent)
    assert (report["type"], report["message"]) == ("ModuleNotFoundError", "No module named 'nothing_like_it'")


@pytest.mark.parametrize("arguments", [[], ["--describe"], ["--what", "x"], ["-h"]])
def test_a_wrong_command_line_prints_the_right_one(arguments):
    result = _worker(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("usage: python -m flashkit.worker APP.py[:NAME]")


@pytest.mark.parametrize("target", ["my_app.py:", ":agent", ":"])
def test_a_target_without_an_endpoint_says_how_to_write_it(app, target):
    result = _worker(target, cwd=app(APP).parent)
    assert result.returncode == 2
    assert result.stderr == f"{target!r} does not name an endpoint: write APP.py:NAME\n"


def test_a_worker_of_an_app_with_several_endpoints_wants_one_named(app):
    result = _worker("my_app.py", cwd=app(APP).parent)
    assert result.returncode == 3
    assert "my_app.py has 4 endpoints, and none is named" in result.stderr
    assert "set FLASHKIT_ENDPOINT, or write my_app.py:NAME; it has: retrieve, Shouter, search, agent" in result.stderr


def test_the_environment_names_the_endpoint_of_a_worker_whose_command_does_not(app):
    result = _worker("my_app.py", cwd=app(APP).parent, FLASHKIT_ENDPOINT="web-retrieval")
    assert result.returncode == 2
    assert "endpoint 'web-retrieval' was started outside of a platform" in result.stderr


def test_an_only_endpoint_need_not_be_named(app):
    path = app("from flashkit import cpu_endpoint\n\n\n@cpu_endpoint()\ndef alone(n: int) -> int:\n    return n\n")
    result = _worker("my_app.py", cwd=path.parent)
    assert "endpoint 'alone' was started outside of a platform" in result.stderr


def test_an_endpoint_that_the_app_does_not_have_lists_those_it_has(app):
    result = _worker("my_app.py:agnet", cwd=app(APP).parent)
    assert result.returncode == 3
    assert "my_app.py has no endpoint 'agnet'" in result.stderr
    assert "it has: retrieve, Shouter, search, agent" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["retrieve", "web-retrieval"])
def test_a_worker_outside_of_a_platform_says_how_to_start_one(app, name):
    result = _worker(f"my_app.py:{name}", cwd=app(APP).parent)
    assert result.returncode == 2
    assert "'web-retrieval' was started outside of a platform" in result.stderr
    assert "flashkit dev" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_worker_whose_app_does_not_import_prints_the_users_traceback_once(app):
    result = _worker("my_app.py:tool", cwd=app("x = 1\nx / 0\n").parent)
    assert result.returncode == 3
    assert result.stderr.count("ZeroDivisionError") == 1
    assert "my_app.py" in result.stderr
    assert "flashkit/worker" not in result.stderr


def test_a_worker_with_a_wrong_setting_names_the_variable(app):
    path = app(APP)
    environ = {"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:1/x", "FLASHKIT_TRACEBACKS": "perhaps"}
    result = _worker("my_app.py:agent", cwd=path.parent, **environ)
    assert result.returncode == 2
    assert "FLASHKIT_TRACEBACKS='perhaps' is neither true nor false" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_handler_that_imports_start_by_name_is_known_as_one(tmp_path):
    app = tmp_path / "handler.py"
    app.write_text('from runpod.serverless import start as go\n\ngo({"handler": print})\n')
    result = subprocess.run(
        [sys.executable, "-m", "flashkit.worker", "--describe", str(app)], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) == {"endpoints": [], "runpod_handler": True}
