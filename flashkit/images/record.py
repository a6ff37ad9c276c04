"""Which image each endpoint was last built into: `.flashkit/images.json` in the project's folder.

`flashkit build` writes it, `flashkit deploy` and `flashkit dev --image` read it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from flashkit.errors import ConfigurationError

IMAGES_FILE: Final = Path(".flashkit") / "images.json"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """An image of one endpoint or several."""

    endpoints: tuple[str, ...]
    reference: str
    """Its name and tag."""
    image_id: str
    """`sha256:…` of its configuration, as this machine's daemon has it."""
    digest: str | None = None
    """`repository@sha256:…` once it has been pushed: what to deploy."""
    platform: str
    size_bytes: int
    built_at: str
    """UTC, as ISO 8601."""
    dockerfile: str
    """Relative to the project's folder where it is below."""

    @property
    def deployable(self) -> str:
        """What a platform is told to pull: exactly this image, once it has been pushed."""
        return self.digest or self.reference

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {**asdict(self), "endpoints": list(self.endpoints)}


def read_images(folder: Path) -> dict[str, BuiltImage]:
    """Return the images of a project by the names of its endpoints; empty when nothing was built.

    Raises:
        ConfigurationError: The file cannot be read.
    """
    file = folder / IMAGES_FILE
    try:
        data = json.loads(file.read_text())
        images = [BuiltImage(**{**item, "endpoints": tuple(item["endpoints"])}) for item in data["images"]]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConfigurationError(f"{file} cannot be read: {exc}", hint="remove it and build again") from exc
    return {name: image for image in images for name in image.endpoints}


def write_images(folder: Path, built: Iterable[BuiltImage]) -> None:
    """Remember images, in place of those that their endpoints had before."""
    try:
        images = read_images(folder)
    except ConfigurationError:  # nothing to keep in a file that cannot be read
        images = {}
    for image in built:
        images |= dict.fromkeys(image.endpoints, image)
    rows: dict[BuiltImage, list[str]] = {}
    for name, image in sorted(images.items()):
        rows.setdefault(image, []).append(name)
    data = {"version": _VERSION, "images": [image.to_dict() | {"endpoints": names} for image, names in rows.items()]}
    file = folder / IMAGES_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    (file.parent / ".gitignore").write_text("*\n")
    fresh = file.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(data, indent=2) + "\n")
    fresh.replace(file)
