"""What a project's files say about its deployment, and what they cannot say."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashkit.deploy.config import DeployConfig, EndpointConfig, read_config, slug
from flashkit.errors import ConfigurationError

TEXT = """
app = "Research Agent"
image = "registry.example/app:1"
registry = "hub"
plain = ["SECRET_NAME"]

[env]
LOG_LEVEL = "info"

[endpoints.writer]
image = "registry.example/writer:1"
args = "python -u writer.py"
disk = 40
model_cache = true
calls = ["notes"]
env = { MODE = "slow" }

[environments.staging]
image = "registry.example/app:next"
env = { LOG_LEVEL = "debug" }
[environments.staging.endpoints.writer]
workers = [0, 1]
env = { MODE = "fast" }
"""


def write(folder: Path, text: str, name: str = "flashkit.toml") -> Path:
    (folder / name).write_text(text)
    return folder


def test_what_holds_for_all_is_under_what_holds_for_one(tmp_path: Path):
    config = read_config(write(tmp_path, TEXT), "production")
    assert (config.app, config.environment, config.plain) == ("research-agent", "production", {"SECRET_NAME"})
    assert config.of("notes") == EndpointConfig(
        image="registry.example/app:1", registry="hub", env={"LOG_LEVEL": "info"}
    )
    assert config.of("writer") == EndpointConfig(
        image="registry.example/writer:1", args="python -u writer.py", registry="hub", disk=40, model_cache=True,
        calls=("notes",), env={"LOG_LEVEL": "info", "MODE": "slow"},
    )  # fmt: skip


def test_an_environment_says_some_things_differently(tmp_path: Path):
    config = read_config(write(tmp_path, TEXT), "staging")
    assert config.of("notes").image == "registry.example/app:next"
    writer = config.of("writer")
    assert (writer.image, writer.workers, writer.disk) == ("registry.example/writer:1", (0, 1), 40)
    assert writer.env == {"LOG_LEVEL": "debug", "MODE": "fast"}


def test_the_same_stands_in_pyproject(tmp_path: Path):
    text = '[project]\nname = "my.project"\n[tool.flashkit]\nimage = "i:1"\n[tool.flashkit.env]\nA = "1"\n'
    config = read_config(write(tmp_path, text, "pyproject.toml"), "production")
    assert config.app == "my-project"
    assert config.of("x") == EndpointConfig(image="i:1", env={"A": "1"})


def test_a_file_of_its_own_goes_before_pyproject(tmp_path: Path):
    write(tmp_path, '[tool.flashkit]\nimage = "old:1"\n', "pyproject.toml")
    assert read_config(write(tmp_path, 'image = "new:1"'), "production").of("x").image == "new:1"


def test_a_project_is_found_from_a_folder_below_it(tmp_path: Path):
    below = tmp_path / "src" / "agents"
    below.mkdir(parents=True)
    write(tmp_path, 'app = "above"')
    assert read_config(below, "production").app == "above"


def test_without_any_file_the_folder_names_the_app(tmp_path: Path):
    folder = tmp_path / "My App"
    folder.mkdir()
    (folder / ".git").mkdir()
    assert read_config(folder, "production") == DeployConfig("my-app")


def test_tables_of_other_commands_are_left_alone(tmp_path: Path):
    text = "[tool.flashkit]\nzzz_other = 3\n[tool.flashkit.lint]\nx = 1\n"
    assert read_config(write(tmp_path, text, "pyproject.toml"), "production").common == EndpointConfig()


@pytest.mark.parametrize(("text", "words"), [
    ("imag = 'i'", "did you mean 'image'?"), ("image = 3", "image in .* is not a string"),
    ("[endpoints.a]\nimagee = 'i'", "endpoints.a.imagee .* is not known"),
    ("disk = true", "disk in .* is not a number"),
    ("[endpoints]\na = 3", "endpoints.a in .* is not a table"), ("[env]\nA = 1", "env.A in .* is not a string"),
    ("[endpoints.a]\nworkers = [1]", "is no pair of numbers"), ("[environments.staging]\nzzz = 1", "is not known"),
    ("image = ", "cannot be read"), ("[endpoints.a]\nmodel_cache = 'yes'", "is not true or false"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str, words: str):
    with pytest.raises(ConfigurationError) as caught:
        read_config(write(tmp_path, text), "production")
    import re

    assert re.search(words, f"{caught.value.report.message} {caught.value.report.hint}")


@pytest.mark.parametrize("name", ["", "Prod", "a b", "-a", "a" * 33])
def test_an_environment_has_a_name_that_fits_into_names(tmp_path: Path, name: str):
    with pytest.raises(ConfigurationError, match="cannot be an environment's name"):
        read_config(tmp_path, name)


def test_a_slug_is_never_empty():
    assert [slug(name) for name in ("A_b c", "ÄÖ", "--x--")] == ["a-b-c", "app", "x"]
