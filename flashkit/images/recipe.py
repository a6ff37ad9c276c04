"""What the image of an endpoint is made of, and the Dockerfile for a project that has none.

A project's own Dockerfile goes before this: `Dockerfile.<endpoint>` for one endpoint, `Dockerfile` for all others.
Endpoints with the same ingredients share an image; FLASHKIT_ENDPOINT tells each worker which of them it runs.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from flashkit.errors import InputError
from flashkit.spec import EndpointSpec, Kind, Weights

WORKER_UID: Final = 1000
"""The user without rights in the base images."""
_APP_DIR: Final = "/app"
REQUIREMENTS: Final = "requirements.txt"
BASE_NAME: Final = "flashkit-worker"


class Variant(StrEnum):
    """The base images."""

    CPU = "cpu"
    """Python, flashkit and the runpod SDK."""
    CUDA = "cuda"
    """For GPUs: what kernels are compiled with; torch brings CUDA's libraries."""
    EMBEDDING = "embedding"
    """CUDA, with torch and transformers."""
    VLLM = "vllm"
    """CUDA, with vLLM."""


_VARIANT_ARGS: Final[dict[Variant, dict[str, str]]] = {
    Variant.CPU: {"VARIANT": "cpu"},
    Variant.CUDA: {"VARIANT": "cuda"},
    Variant.EMBEDDING: {"VARIANT": "cuda", "EXTRAS": "embedding hub"},
    Variant.VLLM: {"VARIANT": "cuda", "EXTRAS": "hub", "ENGINE": "vllm==0.32.0"},
}
"""Build arguments of Dockerfile.base."""
USUAL_PYTHON: Final = "3.11"
PYTHON_IMAGES: Final = {
    "3.12": "python:3.12-slim@sha256:78387bc3881b8273120a12ebe6c1ab22b018ccc2c9adf565ae1ac9b536e184ea",
    "3.13": "python:3.13-slim@sha256:9d2e5553305c7c7b0097999bb17187c69b921ccd6bc9d40e4bb5ebe652c00285",
}
"""What CPU images start from instead of Dockerfile.base's own, which has the usual Python."""


@dataclass(frozen=True, slots=True, order=True)
class Base:
    """A base image. Those with CUDA have the Python of their system."""

    variant: Variant
    python: str = USUAL_PYTHON

    def __post_init__(self) -> None:
        if self.variant is not Variant.CPU:
            object.__setattr__(self, "python", USUAL_PYTHON)
        if self.python != USUAL_PYTHON and self.python not in PYTHON_IMAGES:
            raise InputError(
                f"there is no base image with Python {self.python}",
                hint=f"there are those with {', '.join((USUAL_PYTHON, *PYTHON_IMAGES))}",
            )

    @classmethod
    def parse(cls, text: str) -> Base:
        """Return the base that is written as `cpu`, `vllm` or `cpu-py3.12`.

        Raises:
            InputError: There is none of this name.
        """
        name, _, python = text.partition("-py")
        if name not in list(Variant):
            raise InputError(f"there is no base image {text!r}", hint=f"there are: {', '.join(Variant)}, cpu-py3.12")
        return cls(Variant(name), python or USUAL_PYTHON)

    def reference(self, version: str) -> str:
        """Return its name."""
        python = "" if self.python == USUAL_PYTHON else f"-py{self.python}"
        return f"{BASE_NAME}:{version}-{self.variant}{python}"

    @property
    def build_args(self) -> tuple[tuple[str, str], ...]:
        """What Dockerfile.base is told."""
        python = {} if self.python == USUAL_PYTHON else {"PYTHON_IMAGE": PYTHON_IMAGES[self.python]}
        return tuple((_VARIANT_ARGS[self.variant] | python).items())


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What an image is made of, apart from the project's files."""

    base: Base
    extras: tuple[str, ...] = ()
    """Of flashkit's distribution, installed on top of the base."""
    baked: tuple[Weights, ...] = ()
    command: tuple[str, ...] = ()
    work_dir: str = _APP_DIR


def ingredients_of(
    spec: EndpointSpec, app: Path, *, python: str = USUAL_PYTHON, is_handler: bool = False, bakes: bool = False
) -> Ingredients:
    """Return what the image of an endpoint is made of.

    Args:
        spec: The endpoint.
        app: Its file, relative to the project's folder.
        python: The project's version.
        is_handler: The file calls runpod.serverless.start itself.
        bakes: Bring the engine's weights into the image.
    """
    command = ("python", "-u", app.name) if is_handler else ("python", "-m", "flashkit.worker", app.name)
    return Ingredients(
        base=Base(_variant_of(spec), python),
        extras=_extras_of(spec),
        baked=(spec.weights,) if bakes and spec.weights else (),
        command=command,
        work_dir=str(Path(_APP_DIR) / app.parent),
    )


def _variant_of(spec: EndpointSpec) -> Variant:
    engine = spec.engine.type if spec.engine else None
    if engine == "vllm":
        return Variant.VLLM
    if engine == "embedding":
        return Variant.EMBEDDING
    return Variant.CUDA if spec.gpu else Variant.CPU


def _extras_of(spec: EndpointSpec) -> tuple[str, ...]:
    extras = {"redis": spec.kind is Kind.ORCHESTRATOR, "http": spec.load_balanced}
    return tuple(name for name, is_needed in extras.items() if is_needed)


def merge(parts: Sequence[Ingredients]) -> Ingredients:
    """Return ingredients of one image for endpoints that share a base and a command."""
    first = parts[0]
    extras = dict.fromkeys(extra for part in parts for extra in part.extras)
    baked = dict.fromkeys(weights for part in parts for weights in part.baked)
    return Ingredients(first.base, tuple(extras), tuple(baked), first.command, first.work_dir)


def render(ingredients: Ingredients, *, version: str, has_requirements: bool) -> str:
    """Return the Dockerfile: dependencies, then weights, then code, so that a change of code pushes kilobytes.

    Args:
        ingredients: What goes in.
        version: Of flashkit, whose base image is used.
        has_requirements: The project has a requirements.txt.
    """
    parts = [
        f"ARG BASE={ingredients.base.reference(version)}",
        *(_weights_stage(ingredients.baked) if ingredients.baked else ()),
        "FROM ${BASE}",
        "USER 0",
        *_dependencies(ingredients.extras, has_requirements=has_requirements),
        *_weights_layer(ingredients.baked),
        *_code(ingredients),
    ]
    return "\n".join(parts) + "\n"


def _weights_stage(baked: Iterable[Weights]) -> list[str]:
    pulls = [f"    {_pull_command(weights)}" for weights in baked]
    return [
        "",
        "# The hub's token is a build secret: it is in no layer. --secret id=hf_token,env=HF_TOKEN",
        "FROM ${BASE} AS weights",
        "ARG HF_ENDPOINT",
        f"RUN --mount=type=secret,id=hf_token,uid={WORKER_UID} \\",
        "    if [ -f /run/secrets/hf_token ]; then HF_TOKEN=$(cat /run/secrets/hf_token) && export HF_TOKEN; fi \\",
        " \\\n".join(pulls),
        "",
    ]


def _pull_command(weights: Weights) -> str:
    words = ["flashkit", "weights", "pull", weights.name]
    words += ["--revision", weights.revision] if weights.revision else []
    words += [word for pattern in weights.allow for word in ("--allow", pattern)]
    words += [word for pattern in weights.ignore for word in ("--ignore", pattern)]
    return "&& " + shlex.join([*words, "--to", "/models"])


def _dependencies(extras: Sequence[str], *, has_requirements: bool) -> list[str]:
    wanted = [f"'flashkit-serverless[{','.join(extras)}]'"] if extras else []
    wanted += ["--requirement", f"{_APP_DIR}/{REQUIREMENTS}"] if has_requirements else []
    if not wanted:
        return []
    copy = [f"COPY {REQUIREMENTS} {_APP_DIR}/"] if has_requirements else []
    return [*copy, f"RUN --mount=type=cache,target=/root/.cache/pip pip install {' '.join(wanted)}"]


def _weights_layer(baked: Iterable[Weights]) -> list[str]:
    return ["COPY --link --from=weights /models /models", "ENV HF_HUB_OFFLINE=1"] if list(baked) else []


def _code(ingredients: Ingredients) -> list[str]:
    command = ", ".join(f'"{word}"' for word in ingredients.command)
    move = [f"WORKDIR {ingredients.work_dir}"] if ingredients.work_dir != _APP_DIR else []
    return [
        f"COPY --chown={WORKER_UID}:{WORKER_UID} . {_APP_DIR}/",
        f"RUN python -m compileall -q {_APP_DIR}",
        *move,
        "# 0 where the platform wants root: --build-arg WORKER_UID=0",
        f"ARG WORKER_UID={WORKER_UID}",
        "USER ${WORKER_UID}",
        f"CMD [{command}]",
    ]


IGNORED: Final = """\
# What no worker needs. A .dockerignore of the project goes before this file.
.*
**/.*
**/__pycache__
**/*.pyc
**/node_modules
**/*.egg-info
Dockerfile*
models
tests
venv
"""
"""The .dockerignore of a project that has none."""
