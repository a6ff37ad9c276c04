"""`flashkit dev --image`: endpoints whose workers are containers instead of processes."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import ChainMap
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import flashkit.emulator
from flashkit.cli.apps import AppEndpoint
from flashkit.emulator.server import LocalEndpoint
from flashkit.errors import ImageError, InputError
from flashkit.images.docker import Docker
from flashkit.images.record import read_images
from flashkit.spec import EndpointSpec, Kind

RECORDED: Final = ""
"""Stands for the images that `flashkit build` remembered."""
_SHARED_MEMORY: Final = "2g"
"""At most: what nobody uses costs nothing."""
_SCRIPT: Final = Path(flashkit.emulator.__file__).with_name("container.py")


@dataclass(frozen=True, slots=True)
class ContainerChoice:
    """Which endpoints run in which images: `--image`, as it was written."""

    texts: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()
    """The projects', where images are recorded."""

    def words(self) -> Iterator[str]:
        """Yield what the banner says."""
        for text in self.texts:
            yield f"workers in containers of {text}" if text else "workers in containers of what was built last"

    def choose(self, names: Sequence[str]) -> dict[str, str]:
        """Return images by the names of endpoints.

        Raises:
            InputError: An endpoint is named that there is not, or nothing was built for one.
        """
        chosen: dict[str, str] = {}
        for text in self.texts:
            name, equals, image = text.rpartition("=")
            if equals and name not in names:
                raise InputError(
                    f"--image names an endpoint {name!r}, which there is not",
                    hint=f"the endpoints are: {', '.join(names)}",
                )
            chosen |= dict.fromkeys([name] if equals else names, image)
        is_recorded = RECORDED in chosen.values()
        recorded = {k: v for folder in self.folders if is_recorded for k, v in read_images(folder).items()}
        for name in [name for name, image in chosen.items() if image == RECORDED]:
            if name not in recorded:
                raise InputError(f"no image was built for endpoint {name!r}", hint="build it: flashkit build")
            chosen[name] = recorded[name].reference
        return chosen

    def endpoints(self, endpoints: Sequence[AppEndpoint]) -> list[LocalEndpoint]:
        """Return the endpoints, those that were chosen with a command that runs a container.

        Raises:
            InputError: An endpoint is named that there is not, or nothing was built for one.
            DockerUnavailable: There is no Docker.
            ImageError: An image is not on this machine.
        """
        chosen = self.choose([endpoint.name for endpoint in endpoints])
        if not chosen:
            return [endpoint.local for endpoint in endpoints]
        docker = Docker.find()
        for image in dict.fromkeys(chosen.values()):
            if not docker.has_image(image):
                raise ImageError(
                    f"there is no image {image!r} on this machine", hint=f"docker pull {image}, or flashkit build"
                )
        has_gpus = docker.has_gpus() if any(endpoint.spec.gpu for endpoint in endpoints) else False
        return [
            in_container(each.local, chosen[each.name], docker, has_gpus=has_gpus)
            if each.name in chosen
            else each.local
            for each in endpoints
        ]


def in_container(
    local: LocalEndpoint, image: str, docker: Docker, *, has_gpus: bool = False, options: Sequence[str] = ()
) -> LocalEndpoint:
    """Return an endpoint whose workers run the image's own command in a container.

    Args:
        local: The endpoint; it keeps its environment.
        image: Of the worker.
        docker: The command.
        has_gpus: Containers can have this machine's GPUs.
        options: Further ones of `docker run`.
    """
    spec = {
        "docker": [docker.program, *docker.client_options],
        "image": image,
        "options": [*_model_options(local.spec, has_gpus=has_gpus), *options],
        "env": sorted(local.spec.env),
        "shares_store": local.spec.kind is Kind.ORCHESTRATOR,
    }
    # -I -S: it needs nothing that is installed, and is there sooner without.
    command = (sys.executable, "-I", "-S", str(_SCRIPT), json.dumps(spec))
    named = {"FLASHKIT_ENDPOINT": local.spec.name}
    env = ChainMap(named, cast("MutableMapping[str, str]", local.env))  # what changes in it reaches later workers
    return dataclasses.replace(local, command=command, env=env, can_freeze=False)


def _model_options(spec: EndpointSpec, *, has_gpus: bool) -> list[str]:
    """Return what models need: GPUs, and more than Docker's 64 MB of memory that vLLM's processes share."""
    memory = ["--shm-size", _SHARED_MEMORY] if spec.gpu or spec.engine else []
    return [*memory, *(("--gpus", "all") if spec.gpu and has_gpus else ())]
