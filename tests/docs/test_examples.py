"""Every code block of README, docs and docstrings runs, or says why not; every command exists."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import click
import pytest
from doc_pages import MARKS, ROOT, Block, markdown_pages, read_blocks, read_examples
from page_run import running_page
from sybil.document import PythonDocStringDocument
from sybil.parsers.rest import DocTestParser

import flashkit
from flashkit.cli.commands import cli

PAGES = markdown_pages()
MODULES = sorted((ROOT / "flashkit").rglob("*.py"))
SHELLS = ("bash", "console", "sh", "shell")


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(autouse=True)
def clean_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader's machine: no platform configured, an empty folder."""
    for name in ("RUNPOD_API_KEY", "RUNPOD_ENDPOINT_BASE_URL", "FLASHKIT_STATE", "FLASHKIT_ENDPOINTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.filterwarnings("default")  # the runpod and openai clients on some pages have warnings of their own
@pytest.mark.parametrize("page", [page for page in PAGES if read_blocks(page)], ids=page_id)
def test_a_reader_who_follows_the_page_gets_what_it_shows(page: Path, tmp_path: Path):
    with running_page(tmp_path) as run:
        for example in read_examples(page, run.evaluate):
            example.evaluate()


@pytest.mark.parametrize("module", [path for path in MODULES if ">>> " in path.read_text()], ids=page_id)
def test_docstring_examples_are_true(module: Path):
    parser = DocTestParser(optionflags=doctest.ELLIPSIS)
    document = PythonDocStringDocument.parse(str(module), parser)
    document.namespace.update({name: getattr(flashkit, name) for name in flashkit.__all__})
    examples = list(document.examples())
    assert examples
    for example in examples:
        example.evaluate()


@pytest.mark.parametrize("name", ["cpu", "gpu", "embedding", "orchestrator"])
def test_every_public_decorator_has_an_example(name: str):
    assert ">>> " in (getattr(flashkit, f"{name}_endpoint").__doc__ or "")


def blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in read_blocks(page) if block.language in languages]


def test_comments_above_blocks_are_ones_the_tests_know():
    unknown = [f"{block}: {block.mark}" for block in blocks("python", "json", "text", *SHELLS) if block.mark]
    assert [text for text in unknown if text.rpartition(" ")[2] not in MARKS] == []


def command_lines(block: Block) -> list[list[str]]:
    """Return the words of each command of ours in a shell block."""
    joined = re.sub(r"\\\n\s*", " ", block.source)
    lines = [line.strip().removeprefix("$ ").removesuffix(" 2>&1") for line in joined.splitlines()]
    ours = [line for line in lines if re.match(r"flashkit |scripts/", line)]
    return [shlex.split(line, comments=True) for line in ours]


@pytest.mark.parametrize("block", [block for block in blocks(*SHELLS) if command_lines(block)], ids=str)
def test_commands_in_shell_blocks_exist(block: Block):
    for words in command_lines(block):
        if words[0] == "flashkit":
            check_flashkit_command(words[1:])
        else:
            check_script(words)


def check_flashkit_command(words: list[str]) -> None:
    """Parse the words as click would, without touching files or running anything."""
    context = click.Context(cli, info_name="flashkit", **cli.context_settings)
    if words[0].startswith("-"):
        cli.make_parser(context).parse_args(words)
        return
    command, child = cli, context
    while isinstance(command, click.Group):
        if not words and getattr(command, "alone", None):  # flashkit trace
            words = [command.alone]
        assert words, f"`{child.command_path}` is not a whole command"
        name, *words = words
        usual = getattr(command, "usual", None)
        if usual is not None and name not in command.list_commands(child):  # flashkit plan MODEL
            name, words = usual, [name, *words]
        found = command.get_command(child, name)
        assert found is not None, f"there is no command `{child.command_path} {name}`"
        command, child = found, click.Context(found, parent=child, info_name=name)
    values, rest, _ = command.make_parser(child).parse_args(words)
    assert not rest, f"`{child.command_path}` takes no {rest}"
    for parameter in command.params:
        value = values.get(parameter.name)
        if isinstance(value, str) and not isinstance(parameter.type, click.Path | click.File):
            parameter.type.convert(value, parameter, child)


def check_script(words: list[str]) -> None:
    """Check that the script is there and knows its options."""
    script = ROOT / words[0]
    assert script.is_file(), f"there is no {words[0]}"
    assert script.stat().st_mode & 0o100, f"{words[0]} cannot be executed"
    options = [word for word in words[1:] if word.startswith("--")]
    assert [option for option in options if option not in script.read_text()] == []
