"""What to cut from an image: pure functions of its layers.

Each finding says how many bytes, where, and what to write instead. Bytes of different findings may overlap.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from flashkit.images.layers import Contents, Layer, packages

_WORTH_A_WORD: Final = 1_000_000
_LARGE: Final = 50_000_000
_INSTALLERS: Final = ("pip", "setuptools", "wheel")
"""Python images bring them, and environments have their own."""
_MANY: Final = 3
_CACHES: Final = (
    (r"(root|home/[^/]+)/\.cache/", "caches of package tools", "RUN --mount=type=cache,target=/root/.cache/pip …"),
    (r"var/lib/apt/lists/|var/cache/apt/", "lists and archives of apt",
     "RUN --mount=type=cache,target=/var/lib/apt --mount=type=cache,target=/var/cache/apt …"),
    (r"(.*/)?\.git/", "a git repository", "add .git to .dockerignore"),
    (r"(.*/)?node_modules/", "node_modules", "build it in an earlier stage and copy the result"),
    (r"tmp/|var/tmp/", "temporary files", "remove them in the RUN line that made them"),
)  # fmt: skip
_WEIGHTS: Final = re.compile(r".*\.(safetensors|gguf|ggml|onnx|pt|pth|ckpt|bin|h5)")
_LIBRARIES: Final = re.compile(r"(.*/)?(site-packages|dist-packages)/|usr/|lib/|opt/venv/")
_GPU_ONLY: Final = re.compile(r".*/site-packages/(nvidia|triton|cupy|torch/lib/libtorch_cuda)")
_TOKEN: Final = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|rpa_[A-Z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[ps]_[A-Za-z0-9]{30,}|AKIA[A-Z0-9]{16})\b"
)
_SECRET_NAME: Final = re.compile(r"\b(\w*(?:TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY)\w*)=(?!\s|$|\$)([^\s\"']{6,})")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is better left out, or put elsewhere."""

    id: str
    message: str
    advice: str
    size_bytes: int = 0
    paths: tuple[str, ...] = ()
    """The largest of the files that it is about."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {**asdict(self), "paths": list(self.paths)}


def find_waste(contents: Contents, *, work_dir: str = "/app", is_cpu: bool = False) -> list[Finding]:
    """Return what to cut, what is most first.

    Args:
        contents: The image's layers.
        work_dir: Where the app's code is.
        is_cpu: No endpoint of the image has a GPU.
    """
    code_dir = work_dir.strip("/")
    found = [
        *_caches(contents),
        *_hidden(contents),
        *_twice(contents),
        *_weights_above_code(contents, code_dir),
        *_mixed_with_code(contents, code_dir),
        *(_gpu_libraries(contents) if is_cpu else ()),
    ]
    return sorted(found, key=lambda finding: -finding.size_bytes)


def find_secrets(instructions: Sequence[str], env: Sequence[str]) -> list[Finding]:
    """Return tokens and passwords that an image shows to everybody who has it."""
    found: dict[str, None] = {}
    for text in (*instructions, *env):
        found.update(dict.fromkeys(f"{match[:6]}…" for match in _TOKEN.findall(text)))
        found.update(dict.fromkeys(f"{match[1]}=…" for match in _SECRET_NAME.finditer(text)))
    return [
        Finding(
            "secret-in-image",
            f"the image shows {name} to everybody who can pull it",
            "give it to the build as a secret (--secret), or to the worker in its environment; change it now",
        )
        for name in found
    ]


def largest_files(contents: Contents, *, count: int = 5) -> list[tuple[str, int]]:
    """Return the largest files that a container sees."""
    sizes = ((path, contents.layers[index].files[path]) for path, index in contents.visible().items())
    return sorted((item for item in sizes if item[1] >= _WORTH_A_WORD), key=lambda item: -item[1])[:count]


def _finding(id_: str, message: str, advice: str, files: dict[str, int]) -> Iterator[Finding]:
    """Yield a finding when its files are worth a word."""
    size = sum(files.values())
    if size >= _WORTH_A_WORD:
        largest = sorted(files, key=lambda path: -files[path])[:_MANY]
        yield Finding(id_, message, advice, size, tuple(f"/{path}" for path in largest))


def _caches(contents: Contents) -> Iterator[Finding]:
    for pattern, what, advice in _CACHES:
        matching = re.compile(pattern)
        for number, layer in enumerate(contents.layers, start=1):
            files = {path: size for path, size in layer.files.items() if matching.match(path)}
            yield from _finding("cache-in-layer", f"{what} in layer {number}", advice, files)


def _hidden(contents: Contents) -> Iterator[Finding]:
    """Find files that a later layer removes or replaces: they are pulled, and nobody sees them."""
    visible = contents.visible()
    for number, layer in enumerate(contents.layers, start=1):
        files = {path: size for path, size in layer.files.items() if visible.get(path) != number - 1}
        yield from _finding(
            "hidden-by-later-layer",
            f"files of layer {number} that a later layer removes or replaces",
            "remove them in the same RUN line, or leave them in an earlier stage",
            files,
        )


def _twice(contents: Contents) -> Iterator[Finding]:
    """Find Python packages that lie in two folders, and large files of one name and size."""
    visible = contents.visible()
    places: dict[str, set[str]] = defaultdict(set)
    for package in packages(contents):
        if package.kind == "pypi" and package.name not in _INSTALLERS:
            places[package.name].add(package.place)
    for name, folders in sorted(places.items()):
        if len(folders) > 1:
            unused = sorted(folders)[-1]
            stem = f"{unused}/{name.replace('-', '_')}"
            files = {path: contents.layers[i].files[path] for path, i in visible.items() if path.startswith(stem)}
            text = f"{name} is installed in {' and '.join('/' + folder for folder in sorted(folders))}"
            yield from _finding("package-twice", text, "install it in one place", files)
    yield from _same_files(contents, visible)


def _same_files(contents: Contents, visible: dict[str, int]) -> Iterator[Finding]:
    groups: dict[tuple[str, int], list[str]] = defaultdict(list)
    for path, index in visible.items():
        size = contents.layers[index].files[path]
        if size >= _WORTH_A_WORD:
            groups[posixpath.basename(path), size].append(path)
    for (name, size), paths in groups.items():
        if len(paths) > 1:
            files = dict.fromkeys(paths[1:], size)
            yield from _finding("file-twice", f"{name} is there {len(paths)} times", "keep one, and link to it", files)


def _is_weights(path: str, size: int) -> bool:
    return size >= _WORTH_A_WORD and bool(_WEIGHTS.fullmatch(path)) and not _LIBRARIES.match(path)


def _has_code(layer: Layer, code_dir: str) -> bool:
    return any(
        path.startswith(f"{code_dir}/") and path.endswith(".py") for path in layer.files if "site-packages" not in path
    )


def _weights_above_code(contents: Contents, code_dir: str) -> Iterator[Finding]:
    code = [number for number, layer in enumerate(contents.layers) if _has_code(layer, code_dir)]
    for number, layer in enumerate(contents.layers):
        files = {path: size for path, size in layer.files.items() if _is_weights(path, size)}
        if code and number > code[0]:
            yield from _finding(
                "weights-above-code",
                f"weights in layer {number + 1}, above the code in layer {code[0] + 1}: new code pushes them again",
                "copy the weights before the code, with COPY --link",
                files,
            )


def _mixed_with_code(contents: Contents, code_dir: str) -> Iterator[Finding]:
    for number, layer in enumerate(contents.layers, start=1):
        files = {
            path: size for path, size in layer.files.items() if size >= _WORTH_A_WORD and not _LIBRARIES.match(path)
        }
        if _has_code(layer, code_dir) and sum(files.values()) >= _LARGE:
            yield from _finding(
                "data-with-code",
                f"layer {number} has large files beside the code: each change of code pushes them again",
                "copy them in a line of their own before the code, or name them in .dockerignore",
                files,
            )


def _gpu_libraries(contents: Contents) -> Iterator[Finding]:
    files = {
        path: contents.layers[index].files[path] for path, index in contents.visible().items() if _GPU_ONLY.match(path)
    }
    yield from _finding(
        "gpu-libraries-on-cpu",
        "CUDA's libraries, and no endpoint of this image has a GPU",
        "install torch's build for CPUs",
        files,
    )
