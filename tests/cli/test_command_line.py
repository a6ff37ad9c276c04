"""What every command has in common: a quick start, exit codes, no tracebacks."""

import json
import resource
import subprocess
import sys

import click
import pytest

from flashkit import __version__
from flashkit.cli import exit_code_for
from flashkit.cli.commands import cli
from flashkit.errors import ConfigurationError, DefinitionError, InputError, JobFailed, PlatformError

HEAVY = ("difflib", "rich", "starlette", "uvicorn", "aiohttp", "watchfiles", "pydantic", "runpod", "asyncio", "orjson")


def loaded_by(code):
    script = f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import flashkit.cli",
        "from flashkit.cli import run_command_line; run_command_line(['--help'])",
        "from flashkit.cli import run_command_line; run_command_line(['--version'])",
    ],
)
def test_the_command_line_starts_without_anything_heavy(code):
    assert loaded_by(code) & set(HEAVY) == set()


def test_help_takes_less_than_0_3_seconds_of_cpu(flashkit, tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = flashkit("--help", folder=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "dev" in result.out
    assert "run" in result.out
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 0.3


def test_the_version_is_shown(flashkit, tmp_path):
    assert flashkit("--version", folder=tmp_path).out == f"flashkit {__version__}\n"


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"], ["run"], ["dev", "--port", "x"], ["dev", "no.py"]])
def test_a_wrong_command_line_exits_with_2_and_shows_the_usage(flashkit, tmp_path, arguments):
    result = flashkit(*arguments, folder=tmp_path)
    assert result.code == 2
    assert "Usage: flashkit" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rn"], "No such command 'rn'. Did you mean 'run'?"),
        (["session"], "No such command 'session'. Did you mean 'sessions'?"),
        (["sessions", "lst"], "No such command 'lst'. Did you mean 'list'?"),
        (["xyz"], "No such command 'xyz'.\n"),
        (["sessions", "xyz"], "No such command 'xyz'.\n"),
        (["--versoin"], "No such option '--versoin'. Did you mean '--version'?"),
        (["dev", "--log-levl", "info"], "No such option '--log-levl'. Did you mean '--log-level'?"),
        (["sessions", "list", "--limt", "1"], "No such option '--limt'. Did you mean '--limit'?"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_one(flashkit, tmp_path, arguments, message):
    result = flashkit(*arguments, folder=tmp_path)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def groups(command, context):
    if isinstance(command, click.Group):
        yield command
        for name in command.list_commands(context):
            yield from groups(command.get_command(context, name), context)


def test_every_group_of_commands_names_the_nearest():
    context = click.Context(cli)
    found = [group for group in groups(cli, context) if group.usual is None]  # others take the word for an argument
    assert [group.name for group in found] == ["cli", "sessions", "weights"]
    for group in found:
        name = group.list_commands(context)[0]
        with pytest.raises(click.UsageError, match=f"Did you mean '{name}'"):
            group.resolve_command(context, [f"{name}x"])


def test_without_a_platform_run_says_how_to_get_one(flashkit, tmp_path):
    result = flashkit("run", "agent", "{}", folder=tmp_path)
    assert result.code == 2
    assert "flashkit dev app.py" in result.err
    assert "RUNPOD_API_KEY" in result.err
    assert "Traceback" not in result.err


def test_a_wrong_variable_is_named_without_a_traceback(flashkit, tmp_path):
    result = flashkit("run", "agent", "{}", folder=tmp_path, FLASHKIT_ENDPOINTS="agent=x")
    assert result.code == 2
    assert result.err.startswith("ConfigurationError: FLASHKIT_ENDPOINTS='agent=x'")


def test_a_platform_that_is_not_there_exits_with_1(flashkit, tmp_path, unused_tcp_port):
    url = f"http://127.0.0.1:{unused_tcp_port}/v2"
    result = flashkit("run", "agent", "{}", folder=tmp_path, RUNPOD_ENDPOINT_BASE_URL=url)
    assert result.code == 1
    assert "cannot connect" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_dev_extra_it_says_what_to_install(tmp_path, missing):
    (tmp_path / "app.py").write_text("")
    script = f"import sys; sys.modules[{missing!r}] = None; from flashkit.cli import main; main(['dev', '--port', '0'])"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"needs {missing}" in done.stderr
    assert "flashkit-serverless[dev]" in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), 2),
        (InputError("x"), 2),
        (DefinitionError("x"), 3),
        (JobFailed("x"), 1),
        (PlatformError("x"), 1),
    ],
)
def test_every_family_of_errors_has_its_exit_code(error, code):
    assert exit_code_for(error) == code
