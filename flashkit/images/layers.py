"""What is in an image: the files of each layer, read from the stream of `docker image save`.

Only names and sizes are kept, and the text of the two files that list packages. Archives of every Docker since 1.10
are read: layers are tar files, compressed or not, and `manifest.json` says in which order they lie.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Final

from flashkit.images.docker import HistoryLine

_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_DPKG_STATUS: Final = "var/lib/dpkg/status"
_TEXT_LIMIT_BYTES: Final = 16_000_000


@dataclass(slots=True, eq=False)
class Layer:
    """One layer, and what it adds or hides."""

    instruction: str = ""
    size_bytes: int = 0
    files: dict[str, int] = field(default_factory=dict)
    """Sizes by path, without a leading slash; links count nothing."""
    hidden: list[str] = field(default_factory=list)
    """Paths of lower layers that are removed here."""
    dpkg_status: str = ""


@dataclass(frozen=True, slots=True)
class Contents:
    """An image's layers, the lowest first."""

    layers: tuple[Layer, ...]

    @property
    def size_bytes(self) -> int:
        """Size of all layers."""
        return sum(layer.size_bytes for layer in self.layers)

    def visible(self) -> dict[str, int]:
        """Return what a container sees: the index of the layer that each path comes from."""
        seen: dict[str, int] = {}
        for index, layer in enumerate(self.layers):
            for path in layer.hidden:
                for each in [each for each in seen if each == path or each.startswith(f"{path}/")]:
                    del seen[each]
            seen.update(dict.fromkeys(layer.files, index))
        return seen


def read_contents(stream: IO[bytes], history: Sequence[HistoryLine]) -> Contents:
    """Return the layers of a saved image.

    Args:
        stream: What `docker image save` writes.
        history: The image's instructions; those that made a layer give it its name.
    """
    blobs: dict[str, Layer] = {}
    manifest: list[dict[str, Any]] = []
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            body = archive.extractfile(member) if member.isfile() else None
            if body is None:
                continue
            if member.name == "manifest.json":
                manifest = json.load(body)
            elif (layer := _read_layer(body)) is not None:
                blobs[member.name] = layer
    names = manifest[0]["Layers"] if manifest else []
    layers = [blobs.get(name) or Layer() for name in names]
    for layer, line in zip(layers, _with_layers(history, len(layers)), strict=False):
        layer.instruction = line.instruction
    return Contents(tuple(layers))


def _with_layers(history: Sequence[HistoryLine], count: int) -> Sequence[HistoryLine]:
    """Return the lines of the history that made a layer: those with a size, or that may make an empty one."""
    making = [line for line in history if line.size_bytes or _makes_layer(line.instruction)]
    return making[-count:] if len(making) >= count else [*making, *[HistoryLine("", 0)] * (count - len(making))]


def _makes_layer(instruction: str) -> bool:
    words = instruction.removeprefix("/bin/sh -c #(nop) ").split()
    return bool(words) and words[0] in ("RUN", "COPY", "ADD", "WORKDIR", "/bin/sh")


def _read_layer(body: IO[bytes]) -> Layer | None:
    """Return a layer, None for a file that is none."""
    try:
        with tarfile.open(fileobj=body, mode="r|*") as archive:
            layer = Layer()
            for member in archive:
                _take_member(layer, archive, member)
            layer.size_bytes = sum(layer.files.values())
            return layer
    except (tarfile.ReadError, EOFError):
        return None


def _take_member(layer: Layer, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    path = member.name.removeprefix("./").strip("/")
    folder, name = posixpath.split(path)
    if name == _OPAQUE:
        layer.hidden.append(folder)
    elif name.startswith(_WHITEOUT):
        layer.hidden.append(posixpath.join(folder, name.removeprefix(_WHITEOUT)))
    elif member.isfile():
        layer.files[path] = member.size
        if path == _DPKG_STATUS and member.size < _TEXT_LIMIT_BYTES and (text := archive.extractfile(member)):
            layer.dpkg_status = text.read().decode(errors="replace")
    elif member.issym() or member.islnk():
        layer.files[path] = 0


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """Something that was installed into an image."""

    kind: str
    """`pypi` or `deb`."""
    name: str
    version: str
    place: str = ""
    """The folder that a Python package lies in."""


def packages(contents: Contents) -> Iterator[Package]:
    """Yield Python's and Debian's packages that a container sees."""
    for path in contents.visible():
        folder, name = posixpath.split(path)
        if name == "METADATA" and folder.endswith(".dist-info"):
            place, _, distribution = folder.rpartition("/")
            package, _, version = distribution.removesuffix(".dist-info").partition("-")
            yield Package("pypi", package.replace("_", "-").lower(), version, place)
    status = next((layer.dpkg_status for layer in reversed(contents.layers) if layer.dpkg_status), "")
    for stanza in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] != " ")
        if "Package" in fields and fields.get("Status", "").endswith(" installed"):
            yield Package("deb", fields["Package"], fields.get("Version", ""))
