"""The account key: from RUNPOD_API_KEY, or from the file that Runpod's own tools write. It is never shown."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from flashkit.errors import ConfigurationError

KEY_VARIABLE: Final = "RUNPOD_API_KEY"
KEY_FILE: Final = Path("~/.runpod/config.toml")
_PROFILE: Final = "default"
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class AccountKey:
    """A key, and where it was found."""

    value: str = field(repr=False)
    source: str


def find_key(from_environment: str | None, file: Path = KEY_FILE) -> AccountKey | None:
    """Return the account key; the environment goes before the file.

    Raises:
        ConfigurationError: The file is there and cannot be read.
    """
    if from_environment:
        return AccountKey(from_environment, KEY_VARIABLE)
    path = file.expanduser()
    if not path.is_file():
        return None
    try:
        profile = tomllib.loads(path.read_text(encoding="utf-8")).get(_PROFILE)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        # What is wrong with it is not said: the message could hold a part of the key.
        raise ConfigurationError(
            f"{file} cannot be read as TOML", hint=f'write api_key = "..." below [{_PROFILE}], or set {KEY_VARIABLE}'
        ) from None
    key = profile.get("api_key") if isinstance(profile, dict) else None
    return AccountKey(key, str(file)) if isinstance(key, str) and key else None


def require_key(from_environment: str | None, file: Path = KEY_FILE) -> AccountKey:
    """Return the account key.

    Raises:
        ConfigurationError: There is none.
    """
    key = find_key(from_environment, file)
    if key is None:
        raise ConfigurationError(
            "there is no Runpod API key",
            hint=f"set {KEY_VARIABLE}, or write it to {file} (`rp login` does); without one, plan against "
            "this machine: flashkit deploy --plan --target local",
        )
    return key


def check_address(root: str, key: AccountKey | None) -> None:
    """Refuse to send a key where others could read it.

    Raises:
        ConfigurationError: The address is not of this machine, and not encrypted; or it is none.
    """
    try:
        parts = urlsplit(root)
    except ValueError as exc:
        raise ConfigurationError(f"{root!r} is no address", hint="write for example http://127.0.0.1:8484") from exc
    if key is not None and parts.scheme != "https" and parts.hostname not in _LOOPBACK:
        raise ConfigurationError(
            f"the key is not sent to {parts.scheme}://{parts.netloc}: the connection is not encrypted",
            hint="use an https:// address, or unset the key",
        )
