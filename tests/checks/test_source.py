"""What is read from source text without running it."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashkit.checks.calls import Reader
from flashkit.checks.declarations import find_declarations, read_handler
from flashkit.checks.project import Place
from flashkit.checks.reading import Described, read_endpoints
from flashkit.checks.source import MOST_STEPS, Part, Sources, number_of, words_of
from flashkit.spec import EndpointSpec, Kind


def spec(name: str) -> EndpointSpec:
    return EndpointSpec(name=name, kind=Kind.CPU, cpu="cpu3c-2-4")


def endpoints(files: dict[str, str], **attributes: str):
    """Read endpoints of an app of several files, by name; each is given as `file.py:line`."""
    described = [
        Described(spec=spec(name), app="app.py", attribute=name, where=where) for name, where in attributes.items()
    ]
    return {found.name: found for found in read_endpoints(described, Sources(files))}


def test_an_endpoint_is_found_at_its_decorator_in_every_form():
    app = """import flashkit
from flashkit import cpu_endpoint as tool

@tool(name="a",
      workers=(0, 3))
def a(x: str): ...

b = flashkit.gpu_endpoint(name="b", gpu="L4")

make: object = tool(name="c")

@make
class c:
    def run(self, x: str): ...

def plain(x: str): ...
d = tool(name="d")(plain)

if True:
    @flashkit.cpu_endpoint()
    async def e(): ...
"""
    found = endpoints({"app.py": app}, a="app.py:4", b="app.py:8", c="app.py:14", d="app.py:16", e="app.py:20")
    assert {name: (each.place.line, each.place.last_line) for name, each in found.items()} == {
        "a": (4, 5), "b": (8, 8), "c": (12, 12), "d": (17, 17), "e": (20, 20),
    }  # fmt: skip
    assert {name: each.code.options for name, each in found.items()} == {
        "a": {"name", "workers"}, "b": {"name", "gpu"}, "c": {"name"}, "d": {"name"}, "e": set(),
    }  # fmt: skip
    assert [handler.name for handler in found["c"].code.handlers] == ["run"]
    assert [handler.name for handler in found["d"].code.handlers] == ["plain"]


def test_an_endpoint_of_another_file_is_found_there():
    files = {
        "app.py": "from tools.web import fetch as get\n",
        "tools/__init__.py": "",
        "tools/web.py": "from flashkit import cpu_endpoint\n\n\n@cpu_endpoint(name='get')\ndef fetch(x): ...\n",
    }
    found = endpoints(files, get="web.py:4")["get"]
    assert found.place == Place("tools/web.py", 4, 4)


def test_an_endpoint_that_the_source_does_not_show_has_the_place_it_tells():
    files = {"app.py": "import flashkit\nx = [flashkit.cpu_endpoint(name=n) for n in 'ab']\nglobals()['a'] = x[0]\n"}
    found = endpoints(files, a="app.py:2")["a"]
    assert (found.place, found.code) == (Place("app.py", 2), None)
    assert found.names_option("anything")
    more = {**files, "tools/elsewhere.py": ""}
    assert endpoints(more, a="elsewhere.py:7")["a"].place == Place("tools/elsewhere.py", 7)
    assert endpoints(files, a="elsewhere.py:7")["a"].place == Place("app.py", 1)
    assert endpoints(files, a="")["a"].place == Place("app.py", 1)


def test_files_that_are_not_python_are_left_out():
    assert Sources({"app.py": "def broken(:", "data.json": "{}", "nul.py": "\0"}).modules == {}


def test_imports_of_the_project_are_followed_relative_ones_too():
    sources = Sources(
        {
            "here/src/app.py": "from pkg.steps import one\nimport pkg.other\n\n\ndef start(): one(); pkg.other.two()\n",
            "here/src/pkg/__init__.py": "from .steps import one\n",
            "here/src/pkg/steps.py": "from . import other\nfrom .other import two as zwei\n\n\n"
            "def one(): zwei(); other.three()\n",
            "here/src/pkg/other.py": "def two(): ...\ndef three(): two()\ndef four(): ...\n",
        },
        folder="here",
    )
    app = sources.modules["here/src/app.py"]
    reached = sources.reach([Part(app, app.definitions["start"])], without=frozenset())
    assert sorted(part.node.name for part in reached) == ["one", "start", "three", "two"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("30", 30), ("-3", -3), ("2 * MINUTE + 1", 121), ("MINUTE / 4", 15), ("HOUR - 1", 3599),
        ("MINUTE / ZERO", None),
        ("True", None), ("'30'", None), ("unknown", None), ("LOOP", None), ("f()", None), ("2 ** 3", None),
        ("-f()", None),
    ],
)  # fmt: skip
def test_numbers_that_are_always_the_same_are_known(text: str, number: float | None):
    source = f"MINUTE = 60\nHOUR = 60 * MINUTE\nZERO = 0\nLOOP = LOOP + 1\nvalue = {text}\n"
    module = Sources({"a.py": source}).modules["a.py"]
    assert number_of(module.assigned["value"], module) == number


def test_names_are_followed_only_so_far():
    source = "a0 = 1\n" + "".join(f"a{n + 1} = a{n}\n" for n in range(2 * MOST_STEPS))
    module = Sources({"a.py": source}).modules["a.py"]
    assert number_of(module.assigned[f"a{MOST_STEPS - 1}"], module) == 1
    assert number_of(module.assigned[f"a{2 * MOST_STEPS}"], module) is None


def test_names_in_annotations_are_found_in_quotes_too():
    tree = ast.parse("x: 'list[bytes] | None'\ny: a.b[C]").body
    assert [set(words_of(statement.annotation)) for statement in tree] == [{"list", "bytes", "None"}, {"a", "b", "C"}]
    assert list(words_of(None)) == []


FAN_OUT = """
from flashkit import cpu_endpoint

@cpu_endpoint(name="tool")
def tool(x: str): ...

ITEMS = ["a", "b", "c"]
PAIRS = ITEMS

async def ask(session, x): return await session.call(tool, x)

async def start(session, many):
    {}
"""


@pytest.mark.parametrize(
    ("body", "count", "is_open"),
    [
        ("await session.gather(session.call(tool, 1), session.call(tool, 2))", 2, False),
        ("await session.gather(*(session.call(tool, x) for x in ITEMS))", 3, False),
        ("await session.gather(*[session.call(tool, x) for x in ITEMS for y in range(4)])", 12, False),
        ("await session.gather(*[ask(session, 1), ask(session, 2)], session.call(tool, 3))", 3, False),
        ("calls = [session.call(tool, x) for x in (1, 2)]; await session.gather(*calls)", 2, False),
        ("await session.gather(*(session.call(tool, x) for x in many))", 1, True),
        ("await session.gather(*(session.call(tool, x) for x in PAIRS))", 1, True),
        ("await session.gather(*(session.call(tool, x) for x in [*many, 1]))", 1, True),
        ("await session.gather(*(session.call(tool, x) for x in range(len(many))))", 1, True),
        ("await asyncio.gather(tool.remote(1), tool.remote(2))", 2, False),
        ("many = [*many]; many = [session.call(tool, 1)]; await session.gather(*many)", None, False),
        ("calls = [*calls, session.call(tool, 1)]; await session.gather(*calls)", MOST_STEPS // 3, False),
        ("await session.gather(other(), *many)", None, False),
    ],
)
def test_fan_outs_are_counted_as_far_as_the_source_tells(body: str, count: int | None, is_open: bool):
    sources = Sources({"app.py": FAN_OUT.format(body)})
    module = sources.modules["app.py"]
    found = list(Reader(sources, {"tool": "tool"}).fan_outs([Part(module, module.definitions["start"])]))
    assert [(each.count, each.is_open) for each in found] == ([] if count is None else [(count, is_open)])


def test_a_class_without_a_clear_method_has_no_handler():
    module = Sources({"a.py": "class A:\n    def b(self): ...\n    def c(self): ...\n"}).modules["a.py"]
    assert read_handler(Part(module, module.definitions["A"])) is None


def test_declarations_are_found_in_every_file():
    files = {
        f"{name}.py": f"from flashkit import cpu_endpoint\n{name} = cpu_endpoint(name='{name}')\n" for name in "ab"
    }
    assert [found.name for found in find_declarations(Sources(files))] == ["a", "b"]


@given(st.text(max_size=200))
def test_any_text_can_be_a_source(text: str):
    assert len(Sources({"a.py": text}).modules) <= 1
