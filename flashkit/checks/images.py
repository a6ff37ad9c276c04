"""What the project's Dockerfiles say about its workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from flashkit.checks.dockerfile import Image, Instruction, read_dockerfile
from flashkit.checks.project import Project
from flashkit.spec import Weights

VOLUME_FOLDER: Final = "/runpod-volume"
"""Where the platform mounts a network volume (docs.runpod.io/storage/network-volumes)."""
_DOWNLOADS: Final = ("huggingface-cli download", "hf download", "snapshot_download", "flashkit weights pull")
"""Commands of Dockerfiles that bring weights into the image."""
_FOLDERS: Final = ("model", "weights")
"""Words in the names of folders that weights are copied to."""


def images_of(project: Project) -> list[Image]:
    """Return the project's Dockerfiles, read."""
    return [read_dockerfile(path, text) for path, text in project.files.items() if is_dockerfile(project.inside(path))]


def is_dockerfile(name: str) -> bool:
    """Return whether a file in the project's folder is a Dockerfile, such as `Dockerfile.gpu` or `gpu.Dockerfile`."""
    return "/" not in name and (name == "Dockerfile" or name.startswith("Dockerfile.") or name.endswith(".Dockerfile"))


def dockerignore_of(project: Project) -> str | None:
    """Return the text of `.dockerignore`, None where there is none."""
    return project.files.get(project.path(".dockerignore"))


def image_env(files: Mapping[str, str], folder: str) -> dict[str, str]:
    """Return the variables that the image gives its workers; none where there are several images to choose from."""
    path = "Dockerfile" if folder == "." else f"{folder}/Dockerfile"
    return read_dockerfile(path, files[path]).env if path in files else {}


def is_baked(weights: Weights, project: Project) -> bool:
    """Return whether a Dockerfile seems to bring the weights into the image, where no volume hides them."""
    return any(_brings(each, weights) for image in images_of(project) for each in image.instructions)


def _brings(each: Instruction, weights: Weights) -> bool:
    if VOLUME_FOLDER in each.rest:
        return False
    if each.word == "RUN":
        return weights.name in each.rest or any(command in each.rest for command in _DOWNLOADS)
    target = each.arguments[-1] if each.arguments else ""
    return each.word in ("COPY", "ADD") and any(word in target for word in _FOLDERS)
