"""Which images a project needs, what each is called, and whether it fits its workers."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flashkit.catalog import CONTAINER_DISK_GB, IMAGE_PULL_MB_PER_SECOND, largest_cpu_disk_gb
from flashkit.errors import ImageError, InputError
from flashkit.images.recipe import USUAL_PYTHON, Ingredients, ingredients_of, merge
from flashkit.protocol import PlatformDefaults
from flashkit.spec import EndpointSpec

_NO_VERSION: Final = "dev"
_GB: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedImage:
    """An image that is to be built."""

    specs: tuple[EndpointSpec, ...]
    """The endpoints whose workers run it."""
    suffix: str
    """What tells it from the project's other images; empty where there is one Dockerfile for all."""
    dockerfile: Path | None = None
    """The project's own."""
    ingredients: Ingredients | None = None
    """What it is made of where the project has no Dockerfile."""

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Names of the endpoints."""
        return tuple(spec.name for spec in self.specs)

    @property
    def is_cpu(self) -> bool:
        """True when no endpoint has a GPU."""
        return not any(spec.gpu for spec in self.specs)


def plan_images(
    specs: Sequence[EndpointSpec], *, project: Path, app: Path, is_handler: bool = False, bakes: bool = False
) -> list[PlannedImage]:
    """Return the images that the endpoints need.

    Args:
        specs: The endpoints.
        project: The project's folder.
        app: The file that defines them, below the folder.
        is_handler: The file calls runpod.serverless.start itself.
        bakes: Bring weights into images that have no Dockerfile of their own.
    """
    own = {spec.name: file for spec in specs if (file := project / f"Dockerfile.{spec.name}").is_file()}
    planned = [
        PlannedImage(specs=(spec,), suffix=spec.name, dockerfile=own[spec.name]) for spec in specs if spec.name in own
    ]
    others = [spec for spec in specs if spec.name not in own]
    if others and (project / "Dockerfile").is_file():
        return [PlannedImage(specs=tuple(others), suffix="", dockerfile=project / "Dockerfile"), *planned]
    relative = app.resolve().relative_to(project.resolve())
    python = read_python_version(project)
    made_of = [ingredients_of(spec, relative, python=python, is_handler=is_handler, bakes=bakes) for spec in others]
    return [*_grouped(others, made_of), *planned]


def _grouped(specs: Sequence[EndpointSpec], made_of: Sequence[Ingredients]) -> list[PlannedImage]:
    groups: dict[object, list[tuple[EndpointSpec, Ingredients]]] = {}
    for spec, ingredients in zip(specs, made_of, strict=True):
        groups.setdefault((ingredients.base, ingredients.baked), []).append((spec, ingredients))
    variants = [ingredients.base.variant for members in groups.values() for _, ingredients in members[:1]]
    images = []
    for members in groups.values():
        merged = merge([ingredients for _, ingredients in members])
        is_only = variants.count(merged.base.variant) == 1
        suffix = str(merged.base.variant) if is_only else members[0][0].name
        images.append(PlannedImage(specs=tuple(spec for spec, _ in members), suffix=suffix, ingredients=merged))
    return images


def read_python_version(project: Path) -> str:
    """Return the Python that the project asks for in `.python-version`, as `3.12`; the usual one where it does not."""
    try:
        words = (project / ".python-version").read_text().split()
    except OSError:
        return USUAL_PYTHON
    version = re.match(r"3\.\d+", words[0]) if words else None
    return version[0] if version else USUAL_PYTHON


def choose(planned: Sequence[PlannedImage], endpoint: str | None) -> list[PlannedImage]:
    """Return the image of one endpoint, or all of them.

    Raises:
        InputError: There is no such endpoint.
    """
    if endpoint is None:
        return list(planned)
    names = [name for image in planned for name in image.endpoints]
    if endpoint not in names:
        raise InputError(f"there is no endpoint {endpoint!r}", hint=f"the app has: {', '.join(names)}")
    return [image for image in planned if endpoint in image.endpoints]


def tag_for(image: PlannedImage, *, project: Path, version: str, tag: str | None, is_only: bool) -> str:
    """Return the name of an image: the one that was asked for, or the project's name and the version of its code.

    Args:
        image: What is built.
        project: The project's folder.
        version: Of the code.
        tag: What was asked for.
        is_only: No other image is built, so the name needs no suffix.
    """
    if tag is None:
        name = re.sub(r"[^a-z0-9]+", "-", project.resolve().name.lower()).strip("-") or "app"
        return f"{name}{'-' if image.suffix else ''}{image.suffix}:{version}"
    if is_only or not image.suffix:
        return tag
    head, colon, label = tag.rpartition(":")
    if not colon or "/" in label:
        return f"{tag}:{image.suffix}"
    return f"{head}:{label}-{image.suffix}"


def code_version(folder: Path) -> str:
    """Return the short commit of the folder, with a mark when it was changed since; `dev` where git knows neither."""
    commit = _git(folder, "rev-parse", "--short", "HEAD")
    if not commit:
        return _NO_VERSION
    return f"{commit}-changed" if _git(folder, "status", "--porcelain", ".") else commit


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603, S607
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def check_size(specs: Iterable[EndpointSpec], size_bytes: int) -> list[str]:
    """Return warnings about an image's size.

    Raises:
        ImageError: No worker of an endpoint can have a disk that it fits on.
    """
    warnings = []
    size = f"{size_bytes / _GB:.1f} GB"
    for spec in specs:
        largest = largest_cpu_disk_gb(spec.cpu) if spec.cpu else None
        if largest is not None and size_bytes > largest * _GB:
            raise ImageError(
                f"the image has {size}, and a {spec.cpu} worker of {spec.name!r} has a disk of {largest} GB at most",
                hint="cut what is listed above, keep weights on a volume, or take a larger CPU instance",
            )
        usual = CONTAINER_DISK_GB["gpu" if spec.gpu else "cpu"]
        if size_bytes > usual * _GB:
            warnings.append(f"{size} is more than the usual disk of {usual} GB: {spec.name!r} needs a larger one")
    seconds = pull_seconds(size_bytes)
    if seconds > PlatformDefaults().init_timeout:
        warnings.append(
            f"a new host pulls it for about {seconds / 60:.0f} min, and the platform gives a worker "
            f"{PlatformDefaults().init_timeout / 60:.0f} min to start: set RUNPOD_INIT_TIMEOUT in env"
        )
    return warnings


def pull_seconds(size_bytes: int) -> float:
    """Return about how long a host that has nothing of an image takes to pull it."""
    return size_bytes / 1e6 / IMAGE_PULL_MB_PER_SECOND
