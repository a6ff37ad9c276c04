"""The files that Runpod's Hub reads from a repository, below `.runpod`: `hub.json` and `tests.json`.

The Hub deploys a worker with the defaults of `hub.json`, and sends it the inputs of `tests.json` before a release
is listed. Here the same tests run on the local platform. What the Hub does with a test's timeout in seconds is
not documented; templates have both, so a number below 1,000 counts as seconds, any other as milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from flashkit.errors import ConfigurationError

FOLDER: Final = ".runpod"
DEFAULT_TIMEOUT_S: Final = 300.0
_FIRST_MILLISECONDS: Final = 1_000
MISSING: Final = object()
"""Stands for an expected output that a test does not name."""


@dataclass(frozen=True, slots=True)
class HubTest:
    """One job that must complete."""

    name: str
    input: Any
    timeout_s: float = DEFAULT_TIMEOUT_S
    expected: Any = MISSING
    """The output that it must have, where the test names one."""


@dataclass(frozen=True, slots=True)
class HubTests:
    """What `tests.json` says."""

    tests: tuple[HubTest, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables of the worker that is tested."""


def hub_environment(folder: Path) -> dict[str, str]:
    """Return the variables that the Hub would give a worker of this project: the defaults of `hub.json`.

    Raises:
        ConfigurationError: The file is not what the Hub takes.
    """
    file = folder / FOLDER / "hub.json"
    return _read_environment(file, _read_object(file).get("config")) if file.is_file() else {}


def read_hub_tests(folder: Path) -> HubTests:
    """Return the project's tests.

    Raises:
        ConfigurationError: There are none, or the file is not what the Hub takes.
    """
    file = folder / FOLDER / "tests.json"
    if not file.is_file():
        raise ConfigurationError(
            f"{folder} has no {FOLDER}/tests.json",
            hint='write {"tests": [{"name": "…", "input": {…}, "timeout": 10000}]}',
        )
    data = _read_object(file)
    tests = tuple(_read_tests(file, data.get("tests")))
    if not tests:
        raise ConfigurationError(f"{file} lists no test", hint="a repository on the Hub needs at least one")
    return HubTests(tests, _read_environment(file, data.get("config")))


def _read_tests(file: Path, items: Any) -> Iterator[HubTest]:
    for number, item in enumerate(items if isinstance(items, list) else (), 1):
        if not isinstance(item, dict) or "input" not in item:
            raise ConfigurationError(f"test {number} of {file} has no `input`", hint='write "input": {…}')
        timeout = item.get("timeout", DEFAULT_TIMEOUT_S)
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0:
            raise ConfigurationError(f"timeout={timeout!r} of test {number} of {file} is no time in milliseconds")
        yield HubTest(
            name=str(item.get("name") or f"test {number}"),
            input=item["input"],
            timeout_s=timeout if timeout < _FIRST_MILLISECONDS else timeout / 1000,
            expected=item.get("expected_output", MISSING),
        )


def _read_environment(file: Path, config: Any) -> dict[str, str]:
    """Return the variables of `config.env`: given ones, and defaults of the form's fields."""
    items = config.get("env") if isinstance(config, dict) else None
    found: dict[str, str] = {}
    for item in items if isinstance(items, list) else ():
        if not isinstance(item, dict) or not isinstance(item.get("key"), str):
            raise ConfigurationError(f"an entry of `config.env` in {file} has no `key`: {item!r:.100}")
        form = item.get("input")
        value = item.get("value", form.get("default") if isinstance(form, dict) else None)
        if value is not None:
            found[item["key"]] = _as_text(value)
    return found


def _as_text(value: Any) -> str:
    return orjson.dumps(value).decode() if isinstance(value, bool | int | float) else str(value)


def _read_object(file: Path) -> dict[str, Any]:
    try:
        data = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as exc:
        raise ConfigurationError(f"{file} is not JSON: {exc.msg} (line {exc.lineno})") from exc
    if not isinstance(data, dict):
        raise ConfigurationError(f"{file} is not a JSON object")
    return data
