"""The base images, `flashkit-worker:<version>-<variant>`: built on this machine from Dockerfile.base.

In a checkout flashkit goes into them as it is there; from an installed release it comes from the package index.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flashkit.errors import InputError
from flashkit.images.recipe import BASE_NAME, Base

DOCKERFILE: Final = "Dockerfile.base"
_CHECKOUT: Final = Path(__file__).parent.parent.parent
_PACKAGED: Final = Path(__file__).parent / "_base"
"""Where the wheel has what the checkout has at its top."""
_REFERENCE: Final = re.compile(
    rf"(?:(?<==)|(?<=\s)){BASE_NAME}:(?P<version>\d[\w.]*)-(?P<base>[\w.-]+)(?=\s|$)", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class BaseContext:
    """Where base images are built from."""

    folder: Path
    build_args: tuple[tuple[str, str], ...]
    is_checkout: bool

    @property
    def dockerfile(self) -> Path:
        """The recipe."""
        return self.folder / DOCKERFILE


def find_base_context(version: str) -> BaseContext:
    """Return the checkout, or what the installed release brought."""
    if (_CHECKOUT / DOCKERFILE).is_file() and (_CHECKOUT / "pyproject.toml").is_file():
        return BaseContext(_CHECKOUT, (), is_checkout=True)
    return BaseContext(_PACKAGED, (("FLASHKIT", f"flashkit-serverless=={version}"),), is_checkout=False)


def wanted_bases(dockerfile: str, *, version: str) -> list[Base]:
    """Return the base images that a Dockerfile starts from.

    Raises:
        InputError: It wants one of another version, or one that there is not.
    """
    found: dict[Base, None] = {}
    for match in _REFERENCE.finditer(dockerfile):
        if match["version"] != version:
            raise InputError(
                f"the Dockerfile starts from {match[0]}, and this is flashkit {version}",
                hint=f"write {BASE_NAME}:{version}-{match['base']}, or install flashkit {match['version']}",
            )
        found[Base.parse(match["base"])] = None
    return list(found)
