"""Where to deploy to: Runpod, this machine, or an address; and the app that a command is about."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click

from flashkit.deploy.api import DEFAULT_PATIENCE_SECONDS, ManagementApi
from flashkit.deploy.config import DEFAULT_ENVIRONMENT
from flashkit.deploy.credentials import AccountKey, check_address, find_key, require_key
from flashkit.errors import ConfigurationError
from flashkit.settings import DEV_FILE, RUNPOD_MANAGEMENT_URL, Settings, find_dev_server

RUNPOD: Final = "runpod"
LOCAL: Final = "local"
MANAGEMENT_PATH: Final = "/_/management"
"""Where a local platform has what stands for api.runpod.io."""
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


def target_option(command: Any) -> Any:
    """Add `--target` to a command."""
    return click.option(
        "--target",
        default=RUNPOD,
        show_default=True,
        metavar="runpod|local|URL",
        help="Where: local is the `flashkit dev` of this folder, or its records below .flashkit.",
    )(command)


def env_option(command: Any) -> Any:
    """Add `--env` to a command."""
    return click.option(
        "--env", "environment", default=DEFAULT_ENVIRONMENT, show_default=True, metavar="NAME",
        help="The environment: apart from others in names, variables and images.",
    )(command)  # fmt: skip


def patience_option(command: Any) -> Any:
    """Add `--patience` to a command."""
    return click.option(
        "--patience", type=click.FloatRange(min=0), default=DEFAULT_PATIENCE_SECONDS, show_default=True,
        metavar="SECONDS", help="How long rate limits are waited for, in all.",
    )(command)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """A platform that endpoints are deployed to."""

    root: str
    """Address above `/v2` and `/graphql`."""
    key: AccountKey | None
    is_local: bool

    @property
    def words(self) -> str:
        """The target for people."""
        return "this machine" if self.is_local else urlsplit(self.root).netloc

    def api(self, *, patience_seconds: float, say: Any) -> ManagementApi:
        """Return the way to it."""
        return ManagementApi(self.root, self.key, patience_seconds=patience_seconds, say=say)


@contextlib.asynccontextmanager
async def open_target(text: str, folder: Path) -> AsyncIterator[Target]:
    """Return the target that a command names; a local platform that does not run is there until the end of the block.

    Raises:
        ConfigurationError: There is no key, or the text names no target.
    """
    settings = Settings.from_environment(folder=folder)
    if text == RUNPOD:
        yield _runpod(settings)
    elif text == LOCAL:
        async with _local(folder) as root:
            yield Target(root, None, is_local=True)
    else:
        yield _at_address(text, settings)


def _runpod(settings: Settings) -> Target:
    root = settings.management_url
    is_local = root != RUNPOD_MANAGEMENT_URL and urlsplit(root).path.endswith(MANAGEMENT_PATH)
    return Target(root, require_key(settings.api_key), is_local)


def _at_address(text: str, settings: Settings) -> Target:
    check_address(text, None)
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigurationError(
            f"--target {text!r} is no target", hint="write runpod, local, or an address such as http://127.0.0.1:8484"
        )
    path = parts.path.rstrip("/").removesuffix("/v2")
    root = f"{parts.scheme}://{parts.netloc}{path or MANAGEMENT_PATH}"
    key = None if settings.api_key is None else find_key(settings.api_key)
    return Target(root, key, is_local=parts.hostname in _LOOPBACK)


@contextlib.asynccontextmanager
async def _local(folder: Path) -> AsyncIterator[str]:
    """Yield the root of this machine's management API: of the `flashkit dev` that runs, or one for this command."""
    dev = find_dev_server(folder)
    if dev is not None:
        yield dev.url + MANAGEMENT_PATH
        return
    from flashkit.emulator.server import Emulator

    async with Emulator([], state_dir=folder / DEV_FILE.parent) as emulator:
        yield emulator.url + MANAGEMENT_PATH
