"""Which endpoint gets whose ids, as the source shows it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from flashkit.deploy.calls import find_calls
from flashkit.spec import EndpointSpec, Kind, ScalerType

TOOL = EndpointSpec(name="tool-a", kind=Kind.CPU, cpu="cpu3c-2-4")
OTHER = EndpointSpec(name="tool-b", kind=Kind.CPU, cpu="cpu3c-2-4")
AGENT = EndpointSpec(name="agent", kind=Kind.ORCHESTRATOR, cpu="cpu3c-2-4")
WEB = EndpointSpec(
    name="web", kind=Kind.CPU, cpu="cpu3c-2-4", load_balanced=True, scaler_type=ScalerType.REQUEST_COUNT,
    execution_timeout_ms=60_000,
)  # fmt: skip
SPECS = {"find": TOOL, "write": OTHER}


def calls_of(folder: Path, source: str, modules: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return whose ids the endpoint `write` gets."""
    for name, text in {"app.py": source, **(modules or {})}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return find_calls(folder / "app.py", SPECS, {})["tool-b"]


FIND = "@cpu_endpoint(name='tool-a')\ndef find(topic): return topic\n"


@pytest.mark.parametrize("source", [
    f"{FIND}\n@cpu_endpoint(name='tool-b')\nasync def write(x): return await find.remote(x)",
    f"{FIND}\nasync def helper(x): return await find.remote(x)\nasync def write(x): return await helper(x)",
    f"{FIND}\nTOOLS = [find]\nclass write:\n    def run(self, x): return [t.spawn(x) for t in TOOLS]",
    "async def write(x):\n    async with Client() as c: return await c.endpoint('tool-a').call(x)",
    f"{FIND}\nimport importlib\nasync def write(x): return importlib.import_module(x)",
    "from agents import write, find",
])  # fmt: skip
def test_an_endpoint_that_names_another_gets_its_id(tmp_path: Path, source: str):
    assert calls_of(tmp_path, source) == ("tool-a",)


@pytest.mark.parametrize("source", [
    f"{FIND}\n@cpu_endpoint(name='tool-b')\nasync def write(tool_a): return tool_a",
    f"{FIND}\ndef other(x): return find(x)\nasync def write(x): return x",
    f"{FIND}\nasync def write(x):\n    import json\n    return json.dumps(x)",
    f"{FIND}\nimport re\nasync def write(x): return re.find(x)",
])  # fmt: skip
def test_an_endpoint_that_names_no_other_gets_none(tmp_path: Path, source: str):
    assert calls_of(tmp_path, source) == ()


def test_modules_of_the_project_are_read_as_well(tmp_path: Path):
    source = f"{FIND}\nfrom steps.asking import ask\nasync def write(x): return await ask(x)"
    steps = {
        "steps/__init__.py": "",
        "steps/asking.py": "from shared import call\nasync def ask(x): return await call(x)",
    }
    calling = {"shared.py": "import app\nasync def call(x): return await app.find.remote(x)"}
    assert calls_of(tmp_path, source, {**steps, **calling}) == ("tool-a",)
    assert calls_of(tmp_path, source, {**steps, "shared.py": "async def call(x): return x"}) == ()


def test_a_module_that_is_not_python_says_nothing(tmp_path: Path):
    source = f"{FIND}\nimport broken\nasync def write(x): return broken.x"
    assert calls_of(tmp_path, source, {"broken.py": "def ("}) == ()


def test_agents_and_web_apis_get_all(tmp_path: Path):
    (tmp_path / "app.py").write_text("")
    specs = {**SPECS, "agent": AGENT, "web": WEB}
    found = find_calls(tmp_path / "app.py", specs, {})
    assert found["agent"] == ("tool-a", "tool-b", "web")
    assert found["web"] == ("tool-a", "tool-b", "agent")


def test_what_the_project_lists_goes_before_everything(tmp_path: Path):
    (tmp_path / "app.py").write_text("")
    specs = {**SPECS, "agent": AGENT}
    found = find_calls(tmp_path / "app.py", specs, {"agent": ["tool-b"], "tool-a": []})
    assert (found["agent"], found["tool-a"]) == (("tool-b",), ())
