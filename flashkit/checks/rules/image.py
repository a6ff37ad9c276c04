"""FK6xx: images that can be built again, and that give a worker no more rights than it needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from flashkit.checks.dockerfile import Image
from flashkit.checks.images import dockerignore_of, images_of
from flashkit.checks.project import Place, Project
from flashkit.checks.rule import PRODUCTION, Problem, Severity, rule

_OWN_BASE: Final = "flashkit-worker"
"""The base image of Dockerfile.base, which has a user of its own."""
_ROOT: Final = ("root", "0")
_VERSION: Final = re.compile(r"(===?|~=|>=|<=|<|>|!=|@)")


@rule(
    "FK601",
    "base-image-pinned",
    Severity.WARNING,
    what="The image's base is pinned.",
    why="The tag `latest`, and no tag at all, is another image each week: a build that worked fails, or works with "
    "another Python or CUDA. A changed base is also a new digest, so workers lose what FlashBoot kept.",
    fix="Write FROM name:version@sha256:..., or at least a version as the tag.",
)
def base_image_pinned(project: Project) -> Iterator[Problem]:
    """Bases without a tag, with `latest`, or without a digest."""
    for image in images_of(project):
        for each, base in image.bases():
            name, _, digest = base.partition("@")
            tag = name.rpartition("/")[2].partition(":")[2]
            place = Place(image.path, each.line)
            if "$" in base or digest or not base:
                continue
            if tag in ("", "latest"):
                yield Problem(f"{image.path} starts from {base}, whatever that is on the day of the build", place)
            elif project.environment in PRODUCTION:
                yield Problem(
                    f"{image.path} starts from {base}, a tag that may move", place, severity=Severity.NOTE,
                    fix="Add the digest that `docker buildx imagetools inspect` shows: name:tag@sha256:...",
                )  # fmt: skip


@rule(
    "FK602",
    "image-not-root",
    Severity.WARNING,
    what="The worker's process is not root.",
    why="Whoever finds a hole in a handler or a library is root in the container, and may change its code and read "
    "every "
    "file on the volume.",
    fix="Add a user and end with USER 1000.",
)
def image_not_root(project: Project) -> Iterator[Problem]:
    """Images without USER, or with root."""
    for image in images_of(project):
        stage = image.last_stage
        users = [each for each in stage if each.word == "USER"]
        if not stage or (_OWN_BASE in stage[0].rest and not users):
            continue
        if not users:
            yield Problem(f"{image.path} names no user, so workers run as root", Place(image.path, stage[0].line))
        elif users[-1].rest.partition(":")[0].strip() in _ROOT:
            yield Problem(f"{image.path} lets workers run as root", Place(image.path, users[-1].line))


@rule(
    "FK603",
    "dockerignore-there",
    Severity.WARNING,
    what="A .dockerignore keeps the image to what the worker needs.",
    why="Without one, COPY . . takes .git, virtual environments, models and .env along: a larger image, slower "
    "starts, and "
    "files in it that nobody meant to publish. Every change of any of them also builds the layer anew.",
    fix="Write .dockerignore with .git, .venv, .env*, .flashkit, tests and `__pycache__`.",
)
def dockerignore_there(project: Project) -> Iterator[Problem]:
    """Dockerfiles that copy folders without a `.dockerignore`."""
    if dockerignore_of(project) is None:
        for image in images_of(project):
            if (line := _copies_everything(image)) is not None:
                yield Problem(
                    f"{image.path} copies the whole folder, and there is no .dockerignore", Place(image.path, line)
                )


@rule(
    "FK604",
    "requirements-pinned",
    Severity.WARNING,
    what="Every requirement has a version.",
    why="An image that is built again next month has other libraries than the one that was tested, and a broken "
    "release of "
    "any of them is found in production.",
    fix="Write name==version, or lock the file: `uv pip compile requirements.in -o requirements.txt`.",
)
def requirements_pinned(project: Project) -> Iterator[Problem]:
    """Lines of requirements files without a version."""
    has_constraints = any(project.inside(path).startswith("constraints") for path in project.files)
    for path, text in project.files_below("requirements"):
        if has_constraints or not path.endswith(".txt"):
            continue
        for number, line in enumerate(text.splitlines(), 1):
            name = line.partition("#")[0].partition(";")[0].strip()
            if name and not name.startswith(("-", ".", "/")) and not _VERSION.search(name):
                yield Problem(f"{path} names {name} without a version", Place(path, number))


def _copies_everything(image: Image) -> int | None:
    found = (
        each.line for each, sources, _ in image.copies() if {"", "."} & {each.strip("./") or "." for each in sources}
    )
    return next(found, None)
