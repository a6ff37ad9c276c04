"""Which endpoints a saved file changes, read from the source."""

import textwrap

import pytest

from flashkit.cli.dependencies import read_dependencies

APP = """
    import os
    from tools import parse
    from flashkit import cpu_endpoint

    LIMIT = 3
    OTHER = 4

    def helper():
        return LIMIT

    @cpu_endpoint(name="web")
    def web(x: "Alias") -> int:
        return parse.WORD + helper()

    @cpu_endpoint(name="embed")
    def embed(x: int) -> int:
        return OTHER

    Alias = int
"""
FILES = {
    "tools/__init__.py": "",
    "tools/parse.py": "from .words import WORD\n",
    "tools/words.py": "WORD = 1\n",
    "unused.py": "X = 1\n",
}


@pytest.fixture
def project(tmp_path):
    """Write an app with its modules, and read what its endpoints depend on."""

    def write(app=APP):
        for name, text in {**FILES, "app.py": textwrap.dedent(app)}.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)

    write()
    write.folder = tmp_path
    write.read = lambda *names: read_dependencies(tmp_path / "app.py", names or ("web", "embed"), root=tmp_path)
    return write


def changed(project, app):
    """The endpoints that depend on what is different in this app."""
    before = project.read()
    project(app)
    now = project.read()
    return {name for name in before if before[name] != now[name]}


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("return OTHER", "return OTHER + 1", {"embed"}),
        ("OTHER = 4", "OTHER = 5", {"embed"}),
        ("LIMIT = 3", "LIMIT = 5", {"web"}),
        ("Alias = int", "Alias = str", {"web"}),
        ('name="embed"', 'name="embed2"', {"embed"}),
        ("from tools import parse", "from tools import words as parse", {"web"}),
        ("import os", "import sys", {"web", "embed"}),
        ("LIMIT = 3", "LIMIT = 3\n    print('hello')", {"web", "embed"}),
        ("LIMIT = 3", "LIMIT = 3\n    os.environ['A'] = '1'", {"web", "embed"}),
        ("LIMIT = 3", "LIMIT = 3\n    if os.name: OTHER = 3", {"web", "embed"}),
        ("LIMIT = 3", "LIMIT = 3\n    from unused import *", {"web", "embed"}),
        ("LIMIT = 3", "LIMIT = 3\n    def nobody_calls(): ...", {"web", "embed"}),
        ("LIMIT = 3", "LIMIT = 3\n    'a docstring'", set()),
        ("Alias = int", "Alias = int\n    if __name__ == '__main__': web.serve()", set()),
        ("LIMIT = 3", "# a comment\n    LIMIT = 3", set()),
    ],
)
def test_an_endpoint_depends_on_the_statements_that_it_names(project, old, new, names):
    assert old in APP
    assert changed(project, APP.replace(old, new)) == names


def test_other_files_count_as_a_whole_with_what_they_import(project):
    found = project.read()
    assert {path.name for path in found["web"].files} == {"__init__.py", "parse.py", "words.py"}
    assert found["embed"].files == {}
    (project.folder / "tools" / "words.py").write_text("WORD = 2\n")
    now = project.read()
    assert now["web"] != found["web"]
    assert now["embed"] == found["embed"]


def test_imports_inside_functions_and_of_packages_above_are_seen(project):
    (project.folder / "tools" / "parse.py").write_text("def f():\n    from . import words\n    import unused\n")
    names = {str(path.relative_to(project.folder)) for path in project.read()["web"].files}
    assert names == {"tools/__init__.py", "tools/parse.py", "tools/words.py", "unused.py"}


@pytest.mark.parametrize("code", ["importlib.import_module(x)", "exec(x)", "sys.path.append(x)"])
def test_code_that_looks_for_code_is_open(project, code):
    project(APP.replace("return OTHER", f"return {code}"))
    found = project.read()
    assert (found["web"].is_open, found["embed"].is_open) == (False, True)
    (project.folder / "tools" / "words.py").write_text("import importlib\n")
    assert project.read()["web"].is_open


def test_a_plain_handler_file_is_one_endpoint_with_its_main_part(project):
    project("import runpod\nif __name__ == '__main__':\n    from unused import X\n")
    found = read_dependencies(project.folder / "app.py", [], root=project.folder)
    assert [path.name for path in found[""].files] == ["unused.py"]


def test_a_module_with_a_syntax_error_counts_as_changed_until_it_is_read_again(project):
    before = project.read()
    (project.folder / "tools" / "words.py").write_text("WORD = (\n")
    assert project.read()["web"] != before["web"]


def test_an_app_that_is_no_python_is_refused(project):
    project("def f(:\n")
    with pytest.raises(SyntaxError):
        project.read()
