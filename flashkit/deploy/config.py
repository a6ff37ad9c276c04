"""What a project says about its deployment: `flashkit.toml`, or the table `[tool.flashkit]` of `pyproject.toml`.

Options of endpoints are in the app; here is what differs by environment and has no place in code: images, variables,
registry credentials. `[environments.NAME]` holds the same keys again, for one environment.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from flashkit.errors import ConfigurationError

OWN_FILE: Final = "flashkit.toml"
PROJECT_FILE: Final = "pyproject.toml"
DEFAULT_ENVIRONMENT: Final = "production"
_KEYS: Final = {"app": str, "image": str, "registry": str, "disk": int, "env": dict, "endpoints": dict, "plain": list}
_ENDPOINT_KEYS: Final = {
    "image": str,
    "args": str,
    "registry": str,
    "disk": int,
    "env": dict,
    "workers": list,
    "model_cache": bool,
    "calls": list,
}
_KINDS: Final = {str: "a string", int: "a number", dict: "a table", list: "a list", bool: "true or false"}
_LIKELY_TYPO: Final = 0.75
"""Unknown keys at the top level belong to other commands, unless they look like one of these."""


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """What the project says about one endpoint."""

    image: str | None = None
    args: str | None = None
    """The container's command; by default the image's own."""
    registry: str | None = None
    disk: int | None = None
    """Container disk in GB."""
    env: Mapping[str, str] = field(default_factory=dict)
    workers: tuple[int, int] | None = None
    """Instead of the app's own bounds."""
    model_cache: bool = False
    """The platform puts the weights of the endpoint's engine onto its machines before workers start."""
    calls: tuple[str, ...] | None = None
    """Endpoints that it calls, where the source does not show it, or shows too much."""


@dataclass(frozen=True, slots=True)
class DeployConfig:
    """What the project says about its deployment to one environment."""

    app: str
    """Name of the app; with the environment, the beginning of every name on the platform."""
    environment: str = DEFAULT_ENVIRONMENT
    common: EndpointConfig = EndpointConfig()
    """What holds for every endpoint that says nothing else."""
    endpoints: Mapping[str, EndpointConfig] = field(default_factory=dict)
    plain: frozenset[str] = frozenset()
    """Variables whose names look secret and whose values are not."""

    def of(self, endpoint: str) -> EndpointConfig:
        """Return what holds for one endpoint."""
        own = self.endpoints.get(endpoint, EndpointConfig())
        common = self.common
        return replace(
            own,
            image=own.image or common.image,
            registry=own.registry or common.registry,
            disk=own.disk or common.disk,
            env={**common.env, **own.env},
        )


def read_config(folder: Path, environment: str) -> DeployConfig:
    """Return the configuration of the project in a folder, or in the nearest one above it that has one.

    Raises:
        ConfigurationError: A file cannot be read, or says what cannot be meant.
    """
    check_environment(environment)
    file, table = _find_table(folder.resolve())
    common = dict(_checked(table, _KEYS, file, "", is_open=True))
    for name, value in dict(table.get("environments") or {}).items():
        _checked(value, _KEYS, file, f"environments.{name}.")
    own = dict((table.get("environments") or {}).get(environment) or {})
    app = own.get("app") or common.get("app") or _default_app(folder.resolve())
    return DeployConfig(
        app=slug(app),
        environment=environment,
        common=_merge(_endpoint_config(common, file, ""), own, file),
        endpoints=_read_endpoints(common.get("endpoints") or {}, own.get("endpoints") or {}, file),
        plain=frozenset([*common.get("plain", ()), *own.get("plain", ())]),
    )


def slug(name: str) -> str:
    """Return a name as it may stand in names on the platform."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63] or "app"


def check_environment(name: str) -> None:
    """Refuse a name of an environment that cannot be part of names."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", name):
        raise ConfigurationError(
            f"{name!r} cannot be an environment's name", hint="use up to 32 lower-case letters, digits and dashes"
        )


def _find_table(folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """Return the nearest table that speaks of flashkit, and its file."""
    for place in (folder, *folder.parents):
        own = place / OWN_FILE
        if own.is_file():
            return own, _read_toml(own)
        project = place / PROJECT_FILE
        if project.is_file():
            table = _read_toml(project).get("tool", {}).get("flashkit")
            return project, table if isinstance(table, Mapping) else {}
        if (place / ".git").exists():
            break
    return folder / OWN_FILE, {}


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigurationError(f"{file} cannot be read: {exc}", hint="it must be a file in TOML") from exc


def _default_app(folder: Path) -> str:
    """Return the project's name, or that of its folder."""
    project = folder / PROJECT_FILE
    if project.is_file():
        name = _read_toml(project).get("project", {}).get("name")
        if isinstance(name, str) and name:
            return name
    return folder.name or "app"


def _checked(
    table: Any, known: Mapping[str, type], file: Path, place: str, *, is_open: bool = False
) -> Mapping[str, Any]:
    """Return the table if its keys are known and their values of the right kind."""
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"{place.rstrip('.')} in {file} is not a table")
    for key, value in table.items():
        if key == "environments" and is_open:
            continue
        kind = known.get(key)
        if kind is None:
            near = get_close_matches(key, known, n=1, cutoff=_LIKELY_TYPO if is_open else 0.5)
            if not is_open or near:
                meant = f"did you mean {near[0]!r}? " if near else ""
                raise ConfigurationError(
                    f"{place}{key} in {file} is not known", hint=f"{meant}known are: {', '.join(known)}"
                )
        elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ConfigurationError(f"{place}{key} in {file} is not {_KINDS[kind]}")
    return table


def _read_endpoints(common: Mapping[str, Any], own: Mapping[str, Any], file: Path) -> dict[str, EndpointConfig]:
    names = dict.fromkeys([*common, *own])
    for name in names:
        for table in (common.get(name, {}), own.get(name, {})):
            _checked(table, _ENDPOINT_KEYS, file, f"endpoints.{name}.")
    return {
        name: _merge(_endpoint_config(common.get(name, {}), file, f"endpoints.{name}."), own.get(name, {}), file)
        for name in names
    }


def _merge(config: EndpointConfig, table: Mapping[str, Any], file: Path) -> EndpointConfig:
    """Return the configuration with what an environment says instead."""
    other = _endpoint_config(table, file, "environments.")
    given = {key: getattr(other, key) for key in _ENDPOINT_KEYS if key in table and key != "env"}
    return replace(config, **given, env={**config.env, **other.env})


def _endpoint_config(table: Mapping[str, Any], file: Path, place: str) -> EndpointConfig:
    workers = table.get("workers")
    if workers is not None and (len(workers) != 2 or not all(isinstance(item, int) for item in workers)):  # noqa: PLR2004
        raise ConfigurationError(f"{place}workers in {file} is no pair of numbers", hint="write workers = [0, 3]")
    return EndpointConfig(
        image=table.get("image"),
        args=table.get("args"),
        registry=table.get("registry"),
        disk=table.get("disk"),
        env=dict(_read_env(table.get("env") or {}, file, place)),
        workers=None if workers is None else (workers[0], workers[1]),
        model_cache=bool(table.get("model_cache")),
        calls=tuple(map(str, table["calls"])) if "calls" in table else None,
    )


def _read_env(table: Mapping[str, Any], file: Path, place: str) -> Iterator[tuple[str, str]]:
    for name, value in table.items():
        if not isinstance(value, str):
            raise ConfigurationError(f"{place}env.{name} in {file} is not a string", hint=f'write {name} = "{value}"')
        yield name, value
