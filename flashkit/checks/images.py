"""What the project's Dockerfiles say about its workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from flashkit.checks.dockerfile import Image, read_dockerfile
from flashkit.checks.project import Project
from flashkit.spec import Weights

VOLUME_FOLDER: Final = "/runpod-volume"
"""Where the platform mounts a network volume (docs.runpod.io/storage/network-volumes)."""
_BAKING: Final = ("huggingface-cli download", "hf download", "snapshot_download", "flashkit weights pull", "/models")
"""What Dockerfiles say that bring weights into the image."""


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
    """Return whether a Dockerfile seems to bring the weights into the image."""
    texts = [project.files[image.path] for image in images_of(project)]
    return any(weights.name in text or any(words in text for words in _BAKING) for text in texts)
